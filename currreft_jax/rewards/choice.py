"""Equations 3 and 4: option letters."""

import re
from string import ascii_letters, ascii_uppercase

from currreft_jax.config import PartialCredit, Rewards
from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

_SEPARATORS = re.compile(r"[\s,;&，、；]+")


def read(answer: str, row: Row) -> frozenset[str] | Reason:
    """The set of option letters that an answer consists of.

    Letters may stand in brackets, quotes or before a full stop, and capitals side by side; any other character, a word
    or a letter that the row does not offer makes the whole answer unreadable. A row without options takes every letter.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    letters = []
    for token in _SEPARATORS.split(answer):
        bare = token.strip("()[]\"'.")
        one_letter = len(bare) == 1 and bare in ascii_letters
        if not one_letter and not (set(bare) <= set(ascii_uppercase) and len(set(bare)) == len(bare)):
            return Reason.NOT_LETTERS
        letters += bare.upper()
    if not letters:
        return Reason.NOT_LETTERS
    chosen = frozenset(letters)
    if row.options and not chosen <= set(ascii_uppercase[: len(row.options)]):
        return Reason.UNKNOWN_OPTION
    return Reason.SEVERAL_OPTIONS if len(chosen) > 1 and not row.multiple else chosen


def gold(row: Row) -> frozenset[str]:
    """The right options.

    Raises:
        RowError: for a solution that is not made of the row's option letters, or of several where one is asked for.
    """
    letters = read(gold_text(row), row)
    if isinstance(letters, Reason):
        offered = f"{len(row.options)} options" if row.options else "no list of options"
        several = "one or more of its letters" if row.multiple else 'one of its letters (or "multiple": true)'
        refuse_gold(row, letters, f"{several}; it has {offered}")
    return letters


def accuracy(gold: frozenset[str], answer: frozenset[str], settings: Rewards) -> Verdict:
    """R = 1 if O = O*; `partial_value` where `partial_credit` finds O incomplete but right; else 0 (equations 3, 4).

    With one right option no set is incomplete under `SUBSET`, and equation 4 becomes equation 3.
    """
    if answer == gold:
        return Verdict(1.0)
    subset = answer < gold and settings.partial_credit is not PartialCredit.NONE
    overlap = bool(answer & gold) and settings.partial_credit is PartialCredit.OVERLAP
    return Verdict(settings.partial_value if subset or overlap else 0.0, Reason.NOT_EQUAL)
