"""Writes evaluations of models without a model: rows, answers and manifests in the program's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from currreft_jax.config import Kind, Task
from currreft_jax.evaluation.answers import Answer, answer_line
from currreft_jax.evaluation.manifest import HASH_BYTES
from currreft_jax.runtime.digests import hash_files
from tests.report.workdirs import write_image, write_lines

GOLD = [21, 21, 63, 63]  # of 84 x 84 pixels


def write_detection_rows(path: Path, count: int, **keys: Any) -> Path:
    """Writes open detection rows, each with an image of its own."""
    rows = []
    for number in range(count):
        image = write_image(path.parent / f"{number}.png", colour=(100 + number, 128, 128))
        row = {"id": f"row-{number}", "task": "detection", "kind": "open", "problem": f"where is {number}?"}
        rows.append(row | {"solution": str(GOLD), "image": image.name} | keys)
    write_lines(path, rows)
    return path


def detection_answer(number: int, right: bool, text: str = "", **changes: Any) -> Answer:
    """An answer to a row of `write_detection_rows`; the model saw the image at twice its size."""
    box = [2 * x for x in GOLD] if right else [10, 100, 60, 150]
    fields: dict[str, Any] = {
        "row": f"row-{number}",
        "image": f"key {number}",
        "task": Task.DETECTION,
        "kind": Kind.OPEN,
        "completions": (text or f"<think> a </think> <answer> {box} </answer>",),
        "reasons": (None if right else "iou_below",),
        "decided": ("answer",),
        "finished": (True,),
        "resized": (168, 168),
        **{name: (int(right),) for name in ("strict", "readable")},
        **{name: (float(right),) for name in ("strict_score", "readable_score")},
    }
    return Answer(**fields | changes)


def write_answers(
    folder: Path, suite: str, rows: Path, answers: Sequence[Answer], domain: str = "in", model: str = "models/a"
) -> Path:
    """Writes the answers of the model at a path to a suite, with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{suite}.jsonl").write_text("".join(map(answer_line, answers)), "utf-8")
    file = {"file": str(rows), "sample": "all", "hash": hash_files(rows, size=HASH_BYTES)}
    manifest = {
        "model": {"name": folder.name, "path": model},
        "rows": {"suite": suite, "domain": domain, "count": len(answers), "files": [file]},
        **{"images": "original", "pixels": {"min": 1}, "dtype": "", "prompts": {"template": "world"}},
        **{"decoding": {"temperature": 0.0}, "scorer": {"name": "rules"}, "leaks": 0},
    }
    (folder / f"{suite}.manifest.json").write_text(json.dumps(manifest))
    return folder


def write_evaluation(out: Path, models: Mapping[str, Sequence[int]], domain: str = "in") -> Path:
    """Writes an evaluation: a list of 0 and 1 for each model, whether it has the row right."""
    rows = write_detection_rows(out.parent / "rows" / "boxes.jsonl", max(map(len, models.values())))
    for name, rights in models.items():
        answers = [detection_answer(number, bool(right)) for number, right in enumerate(rights)]
        write_answers(out / name, "boxes", rows, answers, domain)
    return out
