"""Reads a job of rejected sampling: what was kept and why, some kept answers, and those on which judges disagree."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.rows import IMAGE, parse_row, split_conversation
from currreft_jax.judges import judge_name
from currreft_jax.models.folder import read_json
from currreft_jax.rejection.disagreements import DISAGREEMENTS
from currreft_jax.rejection.kept_files import SUMMARY
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rollouts import EmbeddedImages
from currreft_jax.runtime.workdir import KEPT, KEPT_HELD_OUT
from currreft_jax.structs import Turn

ROWS_PER_SOURCE = 5
MAX_DISAGREEMENTS = 40
SEED = 0
_CRITERIA = ("accuracy", "consistency", "format", "fluency")


@dataclass(frozen=True, slots=True)
class RejectionJob:
    """The output of a job.

    Attributes:
        folder: its folder.
        summary: the content of its summary.
        kept: the kept rows, held-out ones too, each with file and line.
        disagreements: the answers that the two judges score differently, the most different first.
    """

    folder: Path
    summary: dict[str, Any]
    kept: tuple[Fields, ...]
    disagreements: tuple[Fields, ...]


def is_rejection(folder: Path) -> bool:
    """Returns true for the folder of a job that has written its summary."""
    return (folder / SUMMARY).is_file() and (folder / KEPT).is_file()


def read_rejection(folder: Path) -> RejectionJob:
    """Reads the output of a job.

    Raises:
        LineError: a row is no JSON object.
        ValueError: the summary is damaged.
    """
    kept = (*_lines(folder / KEPT), *_lines(folder / KEPT_HELD_OUT))
    return RejectionJob(folder, read_json(folder / SUMMARY), kept, _lines(folder / DISAGREEMENTS))


def _lines(path: Path) -> tuple[Fields, ...]:
    """Reads the lines of a file; none where it is absent."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return tuple(Fields.from_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1))


def rejection_record(job: RejectionJob) -> dict[str, Any]:
    """Converts a summary to the page's JSON.

    Raises:
        ValueError: the summary is of another version.
    """
    summary = job.summary
    try:
        calibration, second = summary["calibration"], summary["second_judge"]
        planted = calibration["planted"] if calibration else {}
        if second and not (job.folder / DISAGREEMENTS).is_file():
            raise ValueError(f"{DISAGREEMENTS} is missing")
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
    """Dumps a draw of the kept rows as the page's JSON; see `answers_json`."""
    facts = {"per_source": ROWS_PER_SOURCE, "seed": SEED, "found": len(job.kept)}
    return answers_json(draw_kept(job), facts, max_bytes)


def disagreements_json(job: RejectionJob, max_bytes: int) -> tuple[str, dict[str, int]]:
    """Dumps the first disagreements of the judges as the page's JSON; see `answers_json`."""
    return answers_json(job.disagreements[:MAX_DISAGREEMENTS], {"found": len(job.disagreements)}, max_bytes)


def answers_json(rows: Sequence[Fields], facts: dict[str, Any], max_bytes: int) -> tuple[str, dict[str, int]]:
    """Dumps judged answers, as many as fit, as the page's JSON; counts those `shown` and `missing` images.

    Raises:
        LineError: a row is damaged.
    """
    embedded = EmbeddedImages()
    texts: list[str] = []
    room, missing = max_bytes - 1000, set[str]()
    for fields in rows:
        images_before = len(embedded.images)
        record = _answer_record(fields, embedded)
        text = html_safe_json(record)
        room -= len((text + html_safe_json(embedded.images[images_before:])).encode()) + 1
        if room < 0:
            del embedded.images[images_before:]
            break
        texts.append(text)
        missing.update(record["missing"])
    text = f'{html_safe_json(facts)[:-1]},"images":{html_safe_json(embedded.images)},"rows":[{",".join(texts)}]}}'
    return text, {"shown": len(texts), "missing": len(missing)}


def _answer_record(fields: Fields, embedded: EmbeddedImages) -> dict[str, Any]:
    """Converts a row: its prompt, its answer, and what the judges said."""
    row = parse_row(fields, image_root=Path(fields.location.rpartition(":")[0]).parent)
    question, answer = split_conversation(row)
    judge = fields.take("judge", dict, "the judgement of the answer")
    origin = fields.take("provenance", dict, "where the answer is from")
    second = fields.take("second_judge", dict, "the judgement of a second judge", default={})
    try:
        judges = [{"name": judge_name(judge), **_judgement_record(judge)}]
        judges += [{"name": second["name"], **_judgement_record(second)}] if second else []
        sample, right = origin["sample"], origin["right_by_rules"]
    except (KeyError, TypeError, ValueError) as error:
        raise LineError(fields.location, f"no judged answer of this version ({error!r}); run the job again") from error
    images = [embedded.index_of(path) for path in row.images]
    return {
        **{"row": row.id, "sample": sample, "source": row.source, "task": row.task.value, "right": right},
        "judges": judges,
        "prompt": _texts(question),
        "answer": _texts(answer),
        "images": images,
        "missing": [path for path, index in zip(row.images, images, strict=True) if index is None],
    }


def _judgement_record(keys: dict[str, Any]) -> dict[str, Any]:
    """Converts a judgement; without a score it says why."""
    is_scored = keys["overall"] is not None
    return {
        "overall": float(keys["overall"]) if is_scored else None,
        "scores": {name: float(keys[name]) for name in _CRITERIA} if is_scored else {},
        "unjudged": "" if is_scored else str(keys["unjudged"]),
        "rationale": str(keys["rationale"]),
    }


def _texts(turns: Sequence[Turn]) -> str:
    """Joins the texts of turns, without the marks of images, which are shown beside them."""
    return "\n".join(turn.text.replace(IMAGE, "") for turn in turns)
