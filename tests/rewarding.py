"""Rewards for models that know nothing."""

from zlib import crc32

from currreft_jax.structs import Completion, Frame, Reason, Row, Verdict


def variety(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """Between 0 and 1, by the text alone."""
    value = crc32((row.id + completion.text).encode()) % 5 / 4
    return Verdict(value, None if value else Reason.UNREWARDED)


def small_bytes(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """The share of lower-case letters."""
    value = sum(character.islower() for character in completion.text) / max(1, len(completion.text))
    return Verdict(value, None if value else Reason.UNREWARDED)
