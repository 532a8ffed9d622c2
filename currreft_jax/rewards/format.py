"""The layout that every prompt asks for."""

from currreft_jax.structs import Reason, Verdict


def layout(text: str) -> Verdict:
    """1 for `<think>` thoughts `</think>` `<answer>` … `</answer>` and nothing else, spaces apart.

    The text is one from which `answer.extract` got an answer, so it has one `<answer>` element.
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
