"""Equation 2: yes or no."""

from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict


def read(answer: str) -> bool | Reason:
    """Yes as True, no as False; case and a final full stop do not matter, and nothing else is an answer."""
    word = answer.removesuffix(".").rstrip().casefold()
    if word in ("yes", "no"):
        return word == "yes"
    return Reason.NOT_YES_OR_NO if answer else Reason.EMPTY_ANSWER


def gold(row: Row) -> bool:
    """The row's verdict.

    Raises:
        RowError: for a solution that is neither yes nor no.
    """
    verdict = read(gold_text(row))
    if isinstance(verdict, Reason):
        refuse_gold(row, verdict, "yes or no")
    return verdict


def accuracy(gold: bool, answer: bool) -> Verdict:
    """R = 1 if o = g, else 0 (equation 2)."""
    return Verdict(1.0) if answer == gold else Verdict(0.0, Reason.NOT_EQUAL)
