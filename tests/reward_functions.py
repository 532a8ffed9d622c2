"""Reward functions that an untrained model can earn."""

from zlib import crc32

from currreft_jax.structs import Completion, Frame, Reason, Row, Verdict


def text_hash(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """One of 0, 0.25, … 1, by a hash of row id and text."""
    value = crc32((row.id + completion.text).encode()) % 5 / 4
    return Verdict(value, None if value else Reason.UNREWARDED)


def lowercase_share(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """The share of lower-case letters among the text's characters."""
    value = sum(character.islower() for character in completion.text) / max(1, len(completion.text))
    return Verdict(value, None if value else Reason.UNREWARDED)
