"""Reads a job of rejected sampling: what was kept and why, and a draw of the kept answers with their images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import IMAGE, parse_row, split_conversation
from currreft_jax.models.folder import read_json
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rollouts import EmbeddedImages
from currreft_jax.structs import Turn

SUMMARY, KEPT, HELD_OUT = "summary.json", "kept.jsonl", "held_out.jsonl"
ROWS_PER_SOURCE = 5
SEED = 0
_SCORES = ("accuracy", "consistency", "format", "fluency", "overall")


@dataclass(frozen=True, slots=True)
class RejectionJob:
    """The output of a job.

    Attributes:
        folder: its folder.
        summary: the content of its summary.
        kept: the kept rows, held-out ones too, each with file and line.
    """

    folder: Path
    summary: dict[str, Any]
    kept: tuple[Fields, ...]


def is_rejection(folder: Path) -> bool:
    """Returns true for the folder of a job that has written its summary."""
    return (folder / SUMMARY).is_file() and (folder / KEPT).is_file()


def read_rejection(folder: Path) -> RejectionJob:
    """Reads the output of a job.

    Raises:
        LineError: a kept row is no JSON object.
        ValueError: the summary is damaged.
    """
    files = [path for name in (KEPT, HELD_OUT) if (path := folder / name).is_file()]
    kept = [
        Fields.from_json(line, f"{path}:{number}")
        for path in files
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
    ]
    return RejectionJob(folder, read_json(folder / SUMMARY), tuple(kept))


def rejection_record(job: RejectionJob) -> dict[str, Any]:
    """Converts a summary to the page's JSON.

    Raises:
        ValueError: the summary is of another version.
    """
    summary = job.summary
    try:
        calibration, second = summary["calibration"], summary["second_judge"]
        planted = calibration["planted"] if calibration else {}
        return {
            **{name: summary[name] for name in ("kept", "quota", "shortfall", "threshold", "distilled")},
            "sources": [_source_record(source) for source in summary["sources"]],
            "reasons": {name: count for name, count in summary["answers"].items() if name != "sampled"},
            "sampled": summary["answers"]["sampled"],
            "histogram": [[*map(int, name.split("-")), count] for name, count in summary["histogram"].items()],
            "confusion": {name: int(count) for name, count in summary["judge_against_rules"].items()},
            "planted": [
                [name, one["answers"], one["above_threshold"], one["unjudged"]] for name, one in planted.items()
            ],
            "second_judge": second,
            "sweep": [
                [
                    row[name]
                    for name in ("threshold", "kept", "shortfall", "wrong_share", "planted_share", "mean_length")
                ]
                for row in summary["sweep"]
            ],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{job.folder / SUMMARY} is no summary of this version ({error!r}); run the job again"
        ) from error


def _source_record(source: dict[str, Any]) -> dict[str, Any]:
    names = ("source", "group", "quota", "rows", "sampled", "kept", "shortfall", "reasons")
    return {name: source[name] for name in names}


def draw_kept(job: RejectionJob, seed: int = SEED) -> list[Fields]:
    """Draws `ROWS_PER_SOURCE` kept rows of each source, in the order of a seeded hash of their ids."""

    def key(fields: Fields) -> bytes:
        return hashlib.blake2b(f"{seed}\0{fields.row_id('')}".encode(), digest_size=8).digest()

    taken, drawn = Counter[str](), []
    for fields in sorted(job.kept, key=key):
        source = fields.text("source")
        if taken[source] < ROWS_PER_SOURCE:
            taken[source] += 1
            drawn.append(fields)
    return drawn


def kept_json(job: RejectionJob, max_bytes: int) -> tuple[str, dict[str, int]]:
    """Dumps a draw of the kept rows, as many as fit, as the page's JSON; counts those `shown` and `missing` images.

    Raises:
        LineError: a kept row is damaged.
    """
    embedded = EmbeddedImages()
    texts: list[str] = []
    room, missing = max_bytes - 1000, set[str]()
    for fields in draw_kept(job):
        images_before = len(embedded.images)
        record = _kept_record(fields, embedded)
        text = html_safe_json(record)
        room -= len((text + html_safe_json(embedded.images[images_before:])).encode()) + 1
        if room < 0:
            del embedded.images[images_before:]
            break
        texts.append(text)
        missing.update(record["missing"])
    facts = html_safe_json({"per_source": ROWS_PER_SOURCE, "seed": SEED, "found": len(job.kept)})
    text = f'{facts[:-1]},"images":{html_safe_json(embedded.images)},"rows":[{",".join(texts)}]}}'
    return text, {"shown": len(texts), "missing": len(missing)}


def _kept_record(fields: Fields, embedded: EmbeddedImages) -> dict[str, Any]:
    """Converts a kept row: its prompt, its answer, and what the judge said."""
    row = parse_row(fields, image_root=Path(fields.location.rpartition(":")[0]).parent)
    question, answer = split_conversation(row)
    judge = fields.take("judge", dict, "the judgement of the answer")
    origin = fields.take("provenance", dict, "where the answer is from")
    try:
        scores = {name: float(judge[name]) for name in _SCORES}
        rationale, right = str(judge["rationale"]), origin["right_by_rules"]
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(fields.location, f"no judged answer of this version ({error!r}); run the job again") from error
    images = [embedded.index_of(path) for path in row.images]
    return {
        **{"row": row.id, "source": row.source, "task": row.task.value, "right": right},
        **{"scores": scores, "rationale": rationale},
        "prompt": _texts(question),
        "answer": _texts(answer),
        "images": images,
        "missing": [path for path, index in zip(row.images, images, strict=True) if index is None],
    }


def _texts(turns: Sequence[Turn]) -> str:
    """Joins the texts of turns, without the marks of images, which are shown beside them."""
    return "\n".join(turn.text.replace(IMAGE, "") for turn in turns)
