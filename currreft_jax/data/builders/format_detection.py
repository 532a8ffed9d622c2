"""Detection of a data set's format: by a characteristic file, or by the keys of its first record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from currreft_jax.data.builders.records import SUFFIXES, read_records
from currreft_jax.data.fields import Fields

_FILES = {
    "refcoco": "instances.json",
    "refgta": "instances.json",
    "coco": "instances*.json",
    "voc": "*.xml",
    "clevr": "*questions*.json",
    "scienceqa": "problems.json",
    "visual7w": "*v7w*.json",
}
_KEYS: dict[str, frozenset[str]] = {
    "refcoco-jxu124": frozenset({"raw_anns", "sentences"}),
    "refcoco-lmms": frozenset({"question_id", "bbox", "answer"}),
    "vlm-r1": frozenset({"normalized_solution", "solution"}),
    "open-r1-8k": frozenset({"problem", "solution"}),
    "clevr-70k": frozenset({"problem"}),  # with solution, or with answer as EasyR1 reads it
    "superclevr-r1v": frozenset({"image_path", "ground_truth"}),
    "mathv360k": frozenset({"conversations"}),
    "chat": frozenset({"conversations"}),
    "cauldron": frozenset({"images", "texts"}),
    "scienceqa": frozenset({"question", "choices", "answer"}),
    "vsr": frozenset({"caption", "label"}),
    "geomverse": frozenset({"cot", "image_path"}),
    "text": frozenset({"question", "solution"}),
}


def detect_format(folder: Path, formats: Sequence[str]) -> str:
    """Returns the first of several formats that a folder has; empty if none."""
    if not folder.is_dir():
        return ""
    for name in formats:
        if name in _FILES and any(folder.rglob(_FILES[name])):
            return name
        if name in _KEYS and _KEYS[name] <= _keys_of_first_record(folder):
            return name
    return ""


def _keys_of_first_record(folder: Path) -> frozenset[str]:
    paths = sorted(path for suffix in SUFFIXES for path in folder.rglob("*" + suffix))
    for path in paths[:1]:
        record = next(iter(read_records(path)), None)
        if isinstance(record, Fields):
            return frozenset(record.keys)
    return frozenset()
