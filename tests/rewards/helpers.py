"""Rows, completions and their accuracy in one line."""

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.structs import Completion, Frame, Reason, Row


def well_formed(answer: str) -> str:
    """A completion with the answer in the layout that earns the format reward."""
    return f"<think>look</think><answer>{answer}</answer>"


def make_row(
    kind: str,
    task: str,
    solution: str,
    options: int = 0,
    multiple: bool = False,
    frame: Frame | None = None,
    name: str = "r",
) -> Row:
    texts = tuple(f"option {n}" for n in range(options))
    return Row(name, Task(task), Kind(kind), "", solution, options=texts, multiple=multiple, frame=frame)


def accuracy(
    row: Row, answer: str, settings: Rewards | None = None, frame: Frame | None = None, pool: MathsPool | None = None
) -> tuple[float, Reason | None]:
    """Value and reason of the accuracy reward of an answer in a well-formed completion."""
    scores = score_completions([row], [[Completion(well_formed(answer))]], settings, frames=[frame], pool=pool)
    return float(scores.parts["accuracy"][0, 0]), scores.reasons["accuracy"][0, 0]
