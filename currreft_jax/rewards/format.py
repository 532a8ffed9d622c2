"""The layout that every prompt asks for: thoughts, then the answer."""

from currreft_jax.structs import Reason, Verdict


def format_reward(text: str) -> Verdict:
    """Returns 1 for `<think>` thoughts `</think>` `<answer>` … `</answer>` and nothing else but white space, else 0.

    The text must have one closed `<answer>` element: call `answer.extract_answer` first.
    """
    text = text.strip()
    thoughts, closed, answer = text.removeprefix("<think>").partition("</think>")
    if (
        text.startswith("<think>")
        and closed
        and thoughts.strip()
        and "<think>" not in thoughts
        and "</think>" not in answer
        and answer.lstrip().startswith("<answer>")
        and answer.endswith("</answer>")
    ):
        return Verdict(1.0)
    return Verdict(0.0, Reason.BAD_LAYOUT)
