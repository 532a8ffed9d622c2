"""Draws held-out rows whose reward has changed since the base, with the greedy answers before and after."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from currreft_jax.data.fields import Fields, LineError
from currreft_jax.data.row_boxes import gold_corners
from currreft_jax.data.rows import parse_row
from currreft_jax.report.answer_pairs import SEED, in_image_frame, question_text, seeded_key
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rollouts import (
    EmbeddedImages,
    dump_fitting,
    predicted_boxes,
    question_boxes,
    record_files,
    relative_boxes,
    score_fields,
)
from currreft_jax.report.runs import Run, StageRun
from currreft_jax.rewards import RowError
from currreft_jax.runtime.workdir import HELD_OUT
from currreft_jax.structs import Completion, Frame, Row

ROWS_SHOWN = 8  # of a comparison
_OUT_OF_DOMAIN = "/out_of_domain"  # ends the names of sets of rows out of a stage's domain


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """A line of `held_out/STEP.jsonl`: a row and the greedy answer to it.

    Attributes:
        row: the row.
        resized: the frame that the model saw; None without images.
        text: the answer.
        scores: whether it is finished, its reward, and its parts and reasons.
        location: file and line.
    """

    row: Row
    resized: Frame | None
    text: str
    scores: dict[str, Any]
    location: str


@dataclass(frozen=True, slots=True)
class AnswerChange:
    """A row's answers before and after."""

    before: HeldOutAnswer
    after: HeldOutAnswer

    @property
    def difference(self) -> float:
        """Change of the reward."""
        return self.after.scores["reward"] - self.before.scores["reward"]


@dataclass(frozen=True, slots=True)
class StageComparison:
    """The answers of the base and of the end of a stage to the same rows.

    Attributes:
        held_out: name of the set of rows.
        stage: the stage.
        step: its last step.
        changes: one for each recorded row.
    """

    held_out: str
    stage: str
    step: int
    changes: tuple[AnswerChange, ...]


def before_after_json(run: Run, max_bytes: int, seed: int = SEED) -> tuple[str, dict[str, int]]:
    """Dumps held-out rows whose reward has changed, as the page's JSON, and counts those `shown` and `missing` images.

    Of each comparison, `ROWS_SHOWN` rows are drawn at random, whether the reward has risen or fallen; tasks take turns.
    The draw depends on the seed and the rows' names alone.

    Args:
        run: the run.
        max_bytes: size limit of the JSON; rows that would exceed it are left out.
        seed: seed of the draw.

    Raises:
        LineError: a line is damaged.
    """
    comparisons, problem = find_comparisons(run)
    embedded, missing = EmbeddedImages(), set[str]()
    room = max_bytes - 2000
    shown = left_out = 0
    records = []
    for compared in comparisons:
        drawn = draw_changes(compared, seed)
        rows, texts, room = dump_fitting(drawn, lambda change: _change_record(change, embedded), embedded, room)
        shown += len(rows)
        left_out += len(drawn) - len(rows)
        missing.update(path for row in rows for path in row["missing"])
        counts = Counter((change.difference > 0) - (change.difference < 0) for change in compared.changes)
        facts = {
            "held_out": compared.held_out,
            "stage": compared.stage,
            "step": compared.step,
            "kept_step": run.kept_steps.get(compared.stage, compared.step),
            "improved": counts[1],
            "worsened": counts[-1],
            "equal": counts[0],
        }
        records.append(f'{html_safe_json(facts)[:-1]},"rows":[{",".join(texts)}]}}')
    facts = {"problem": problem, "seed": seed, "left_out": left_out}
    images = html_safe_json(embedded.images)
    text = f'{html_safe_json(facts)[:-1]},"images":{images},"comparisons":[{",".join(records)}]}}'
    return text, {"shown": shown, "missing": len(missing)}


def find_comparisons(run: Run) -> tuple[list[StageComparison], str]:
    """Compares the base with the end of each stage on the stage's own rows, and of the last one on those before it.

    Returns:
        The comparisons in training order; why there are none, empty if there are some.

    Raises:
        LineError: a line is damaged.
    """
    base = _read_answers(run.stages[0], 0)
    ends = [(stage, max(steps)) for stage in run.stages if (steps := _recorded_steps(stage) - {0})]
    if not base:
        return [], "no answers to held-out rows were recorded before the first step"
    if not ends:
        return [], "held-out rows are answered once more at the end of the first stage"
    comparisons = []
    for stage, step in ends:
        after = _read_answers(stage, step)
        sets = list(dict.fromkeys(held_out for held_out, _ in after))
        own = [held_out for held_out in sets if held_out.removesuffix(_OUT_OF_DOMAIN) == stage.name]
        if stage is ends[-1][0] and not own:  # such as the stage of self-improvement
            own = [held_out for held_out in sets if not held_out.endswith(_OUT_OF_DOMAIN)][-1:]
        for held_out in own:
            pairs = ((base.get(key), answer) for key, answer in after.items() if key[0] == held_out)
            changes = tuple(
                AnswerChange(before, answer) for before, answer in pairs if before and before.row.id == answer.row.id
            )
            comparisons.append(StageComparison(held_out, stage.name, step, changes))
    return comparisons, ""


def draw_changes(compared: StageComparison, seed: int = SEED) -> list[AnswerChange]:
    """Draws `ROWS_SHOWN` rows whose reward has changed, in the order of a seeded hash of their names; tasks in turn."""
    changed = [change for change in compared.changes if change.difference]
    by_task: dict[str, list[AnswerChange]] = {}
    for change in sorted(changed, key=lambda change: seeded_key(seed, compared.held_out, change.before.row.id)):
        by_task.setdefault(change.before.row.task.value, []).append(change)
    turns = chain.from_iterable(zip_longest(*(by_task[task] for task in sorted(by_task))))
    return [change for change in turns if change][:ROWS_SHOWN]


def _recorded_steps(stage: StageRun) -> set[int]:
    return set(record_files(stage.folder / HELD_OUT))


def _read_answers(stage: StageRun, step: int) -> dict[tuple[str, int], HeldOutAnswer]:
    """Reads the answers of a step, of all hosts, by the name of their set and the index of their row in it."""
    answers = {}
    for path in record_files(stage.folder / HELD_OUT).get(step, []):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            fields = Fields.from_json(line, location := f"{path}:{number}")
            row = Fields(fields.take("row", dict, "an object"), location)
            answer = Fields(fields.take("answer", dict, "an object"), f"{location}: answer")
            key = fields.text("held_out"), fields.take("index", int, "a whole number")
            answers[key] = HeldOutAnswer(
                row=parse_row(row, image_root=path.parent),
                resized=row.frame("resized"),
                text=answer.text("text"),
                scores=score_fields(answer),
                location=location,
            )
    return answers


def _change_record(change: AnswerChange, embedded: EmbeddedImages) -> dict[str, Any]:
    """Converts a row and its answers to the page's JSON; boxes are relative to the image's sides."""
    row = change.after.row
    images = [embedded.index_of(path) for path in row.images]
    row = in_image_frame(row, images, embedded)
    try:
        gold, asked = relative_boxes(gold_corners(row), row.frame), question_boxes(row)
    except RowError as error:
        raise LineError(change.after.location, error.problem) from error
    return {
        "id": row.id,
        "task": row.task.value,
        "kind": row.kind.value,
        "prompt": question_text(row),
        "solution": row.solution,
        "difference": round(change.difference, 4),
        "images": images,
        "missing": [path for path, index in zip(row.images, images, strict=True) if index is None],
        "gold_boxes": gold,
        "question_boxes": asked,
        "completions": [
            {"name": name, "text": answer.text, **answer.scores, "boxes": _boxes(answer, row)}
            for name, answer in (("before", change.before), ("after", change.after))
        ],
    }


def _boxes(answer: HeldOutAnswer, row: Row) -> list[list[float]]:
    completion = Completion(answer.text, finished=answer.scores["finished"])
    return predicted_boxes(completion, row, answer.resized or row.frame)
