"""Kept answers as rows to train on, with the provenance of each. Loads no JAX."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from currreft_jax.data.builders.image_split import connected_groups
from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.prompts import Template, question_messages
from currreft_jax.data.rows import IMAGE, parse_row
from currreft_jax.evaluation.suites import SuiteQuestion
from currreft_jax.judges import Judgement
from currreft_jax.rejection.selection import JudgedAnswer
from currreft_jax.structs import Frame


def training_row(
    question: SuiteQuestion, source: str, text: str, frame: Frame | None, template: Template, folder: Path
) -> dict[str, Any]:
    """Returns a chat row of a prompt, as the model read it, and an answer.

    Boxes of the prompt and of the answer are in pixels of the frame that the model saw.

    Args:
        question: the question.
        source: name of its source.
        text: the answer.
        frame: the frame in which the first image was seen; None for its own.
        template: prompt template.
        folder: of the file, to which image paths are relative.
    """
    row = question.row
    frames = [(image.frame, frame or image.frame) for image in question.images]
    messages = [
        {"role": message["role"], "content": _content_text(message["content"])}
        for message in question_messages(row, template, frames)
    ]
    keys: dict[str, Any] = {
        "id": f"{source}/{row.id}",
        "task": row.task.value,
        "kind": "chat",
        "messages": [*messages, {"role": "assistant", "content": text}],
        "images": [os.path.relpath(path, folder.absolute()) for path in row.images],
        "source": source,
        "split": row.split,
        "origin": row.origin,
    }
    return {key: value for key, value in keys.items() if value}


def is_readable(keys: dict[str, Any], folder: Path) -> bool:
    """Returns whether training can read a row: an answer may hold marks of images or boxes, which it must not."""
    try:
        parse_row(Fields(keys, ""), image_root=folder)
    except LineError:
        return False
    return True


def provenance(answer: JudgedAnswer, question: SuiteQuestion, manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of a row that say where its answer is from, and what the judge said.

    Args:
        answer: the answer, a judged one.
        question: the question.
        manifest: of the job.
    """
    assert answer.judgement is not None  # only judged answers become rows
    completion, frame = answer.answer.completion, answer.group.frame
    return {
        "provenance": {
            "row": question.row.id,
            "location": question.location,
            "kind": question.row.kind.value,
            "generator": manifest["model"],
            "distilled": is_distilled(manifest),
            "seed": manifest["decoding"]["seed"],
            "sample": answer.sample,
            "tokens": completion.num_tokens,
            "template": manifest["prompts"],
            "frame": frame and [frame.width, frame.height],
            "right_by_rules": answer.answer.right,
        },
        "judge": {**judgement_keys(answer.judgement), **manifest["judge"]},
    }


def is_distilled(manifest: dict[str, Any]) -> bool:
    """Returns whether the answers are those of a server: of another model than the one that is trained."""
    return bool(manifest["settings"]["model"]["endpoint"])


def judgement_keys(judgement: Judgement) -> dict[str, Any]:
    """Returns a judgement as the keys of a row."""
    return {
        **(asdict(judgement.scores) if judgement.scores else {"unjudged": str(judgement.unjudged)}),
        "overall": judgement.overall,
        "rationale": judgement.rationale,
        "reply": judgement.reply,
    }


def split_held_out(rows: Sequence[tuple[Sequence[str], Any]], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Splits rows into those to train on and a share to hold out; rows that share a key stay together.

    Args:
        rows: keys of a row's images, or of its question without any; and the row.
        share: share of the rows to hold out, rounded up; none where all rows stay together.
        seed: seed of the choice.
    """

    def draw(group: Sequence[int]) -> bytes:
        key = min(key for index in group for key in rows[index][0])
        return hashlib.blake2b(f"{seed}\0{key}".encode()).digest()

    groups = connected_groups(range(len(rows)), lambda index: rows[index][0])
    wanted = math.ceil(share * len(rows)) if len(groups) > 1 else 0
    held_out: set[int] = set()
    for group in sorted(groups, key=draw):
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    return (
        [row for index, (_, row) in enumerate(rows) if index not in held_out],
        [row for index, (_, row) in enumerate(rows) if index in held_out],
    )


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as JSON lines, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _content_text(content: str | list[dict[str, Any]]) -> str:
    """Returns the text of a message, with `<image>` in place of an image."""
    if isinstance(content, str):
        return content
    return "".join(IMAGE if item["type"] == "image" else item["text"] for item in content)
