"""Reward functions that an untrained model can earn."""

from zlib import crc32

from currreft_jax.config import Kind
from currreft_jax.structs import Completion, Frame, Reason, Row, Verdict


def text_hash(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """One of 0, 0.25, … 1, by a hash of row id and text."""
    value = crc32((row.id + completion.text).encode()) % 5 / 4
    return Verdict(value, None if value else Reason.UNREWARDED)


def lowercase_share(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """The share of lower-case letters among the text's characters."""
    value = sum(character.islower() for character in completion.text) / max(1, len(completion.text))
    return Verdict(value, None if value else Reason.UNREWARDED)


def misspelt_key(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict | None:
    """1 within a tolerance that no row has; not for yes-or-no rows, nor for completions without an answer."""
    if row.kind is Kind.JUDGE:
        return None
    if not answer:
        return Verdict(0.0, Reason.NO_ANSWER_TAG)
    return Verdict(float(row.extra["tolerence"]))


def needs_answer(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """1 for an answer of any length; fails without one."""
    assert answer is not None
    return Verdict(1.0)
