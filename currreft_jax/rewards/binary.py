"""Yes or no: equation 2."""

from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict


def parse_yes_no(answer: str) -> bool | Reason:
    """Parses the word yes as True and no as False, in any case and with or without a full stop."""
    word = answer.removesuffix(".").rstrip().casefold()
    if word in ("yes", "no"):
        return word == "yes"
    return Reason.NOT_YES_OR_NO if answer else Reason.EMPTY_ANSWER


def gold_yes_no(row: Row) -> bool:
    """Returns the gold answer of a judge row.

    Raises:
        RowError: the solution is neither yes nor no.
    """
    answer = parse_yes_no(gold_text(row))
    if isinstance(answer, Reason):
        refuse_gold(row, answer, "yes or no")
    return answer


def binary_accuracy(gold: bool, answer: bool) -> Verdict:
    """Computes R = 1 if o = g, else 0 (equation 2)."""
    return Verdict(1.0) if answer == gold else Verdict(0.0, Reason.NOT_EQUAL)
