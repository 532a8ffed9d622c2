"""Sets of labels: equation 5."""

import re

from currreft_jax.config import Rewards
from currreft_jax.rewards.answer import gold_text, parse_json, refuse_gold
from currreft_jax.structs import Reason, Row, Verdict

_COMMAS = re.compile(r"[,，、\n]")


def parse_labels(answer: str, settings: Rewards) -> frozenset[str] | Reason:
    """Parses a comma-separated or JSON list of labels.

    Labels are normalized to lower case, single spaces, no final full stop, and aliases are resolved.
    """
    if not answer:
        return Reason.EMPTY_ANSWER
    if answer.startswith(("[", "{", "```")):
        try:
            names = parse_json(answer)
        except ValueError:
            return Reason.BAD_JSON
        if not isinstance(names, list):
            return Reason.BAD_JSON
    else:
        names = _COMMAS.split(answer)
    labels = set()
    for name in names:
        if not isinstance(name, str):
            return Reason.BAD_JSON
        label = _normalize(name)
        labels.add(settings.aliases.get(label, label))
    labels.discard("")
    return frozenset(labels) or Reason.EMPTY_ANSWER


def gold_labels(row: Row, settings: Rewards) -> frozenset[str]:
    """Returns the right labels.

    Raises:
        RowError: the solution has no labels.
    """
    labels = parse_labels(gold_text(row), settings)
    if isinstance(labels, Reason):
        refuse_gold(row, labels, "labels with commas between them, or a JSON list of strings")
    return labels


def classify_accuracy(gold: frozenset[str], answer: frozenset[str]) -> Verdict:
    """Computes R = |P ∩ G| / |P ∪ G| (equation 5)."""
    return Verdict(1.0) if answer == gold else Verdict(len(answer & gold) / len(answer | gold), Reason.LABELS_DIFFER)


def _normalize(name: str) -> str:
    return " ".join(name.casefold().split()).removesuffix(".").rstrip()
