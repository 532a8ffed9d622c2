"""Yes or no: equation 2."""

from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

# What the words mean that are refused as gold answers.
_MEANT = {"true": "yes", "false": "no", "1": "yes", "0": "no", "y": "yes", "n": "no"}


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
    text = gold_text(row)
    answer = parse_yes_no(text)
    if isinstance(answer, Reason):
        word = _MEANT.get(text.casefold())
        refuse_gold(row, answer, f"yes or no: write {word}" if word else "yes or no")
    return answer


def binary_accuracy(gold: bool, answer: bool) -> Verdict:
    """Computes R = 1 if o = g, else 0 (equation 2)."""
    return Verdict(1.0) if answer == gold else Verdict(0.0, Reason.NOT_EQUAL)
