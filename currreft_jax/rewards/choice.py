"""Option letters: equations 3 and 4."""

import re
from collections.abc import Sequence
from string import ascii_letters, ascii_uppercase

from currreft_jax.config import PartialCredit, Rewards
from currreft_jax.rewards.answer import gold_text, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

_SEPARATORS = re.compile(r"[\s,;&，、；]+")


def format_options(options: Sequence[str]) -> str:
    r"""Formats options as prompts show them: `\nA. first\nB. second`; empty without options."""
    return "".join(f"\n{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False))


def parse_letters(answer: str, row: Row) -> frozenset[str] | Reason:
    """Parses an answer as a set of option letters.

    Letters may stand in brackets, in quotes or before a full stop, and capitals without separators. A word, any other
    character or a letter that the row does not offer refuses the whole answer. A row without options offers A to Z.
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


def gold_letters(row: Row) -> frozenset[str]:
    """Returns the letters of the right options.

    Raises:
        RowError: the solution has other letters than the row's options, or several where one is asked for.
    """
    letters = parse_letters(gold_text(row), row)
    if isinstance(letters, Reason):
        offered = f"{len(row.options)} options" if row.options else "no list of options"
        several = "one or more of its letters" if row.multiple else 'one of its letters (or "multiple": true)'
        refuse_gold(row, letters, f"{several}; it has {offered}{_letter_meant(row)}")
    return letters


def _letter_meant(row: Row) -> str:
    """Says which letter to write for a gold answer that is the text of an option."""
    meant = [
        letter
        for letter, option in zip(ascii_uppercase, row.options, strict=False)
        if option.strip().casefold() == gold_text(row).casefold()
    ]
    return f"; write {meant[0]}, the letter of this option" if len(meant) == 1 else ""


def choice_accuracy(gold: frozenset[str], answer: frozenset[str], settings: Rewards) -> Verdict:
    """Computes R = 1 if O = O*; `partial_value` if `partial_credit` accepts O as incomplete; else 0 (equations 3, 4).

    With one right option no answer is incomplete under `SUBSET`, and equation 4 becomes equation 3.
    """
    if answer == gold:
        return Verdict(1.0)
    subset = answer < gold and settings.partial_credit is not PartialCredit.NONE
    overlap = bool(answer & gold) and settings.partial_credit is PartialCredit.OVERLAP
    return Verdict(settings.partial_value if subset or overlap else 0.0, Reason.NOT_EQUAL)
