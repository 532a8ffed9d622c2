"""Reads the answers of evaluated models, and converts their comparison to the page's JSON: tables and bars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from currreft_jax.config import ImageCondition, Kind
from currreft_jax.evaluation.compare import ModelAnswers, TableColumn, compare_models, read_model_answers
from currreft_jax.evaluation.comparison_tables import CAPTION, comparison_tables, fault_notes, metric_title
from currreft_jax.runtime.workdir import CHECKPOINTS

_MANIFESTS = "*.manifest.json"
_DIGITS = re.compile(r"([0-9]+)")  # at odd places of a split, so that numbers meet numbers


@dataclass(frozen=True, slots=True)
class EvaluatedModels:
    """Models with their answers to suites.

    Attributes:
        title: name of the evaluation.
        models: in the order in which they are compared.
    """

    title: str
    models: tuple[ModelAnswers, ...]


def answer_folders(folder: Path) -> list[Path]:
    """Returns the folders of models' answers: itself, or those in an evaluation by name; none elsewhere."""
    if any(folder.glob(_MANIFESTS)):
        return [folder]
    found = {path.parent for path in folder.glob(f"*/{_MANIFESTS}")}
    return sorted(
        found, key=lambda path: [int(part) if part.isdecimal() else part for part in _DIGITS.split(path.name)]
    )


def read_evaluated_models(folders: Sequence[Path]) -> EvaluatedModels:
    """Reads the answers of models.

    Args:
        folders: of models, or one evaluation's with several of them.

    Raises:
        ValueError: a folder holds no answers, some rows are not answered yet, or a file is damaged.
    """
    own = [answers for folder in folders for answers in answer_folders(folder)]
    title = (folders[0] if len(folders) == 1 else own[0].parent).resolve().name
    return EvaluatedModels(title, tuple(read_model_answers(folder) for folder in own))


def comparison_record(evaluated: EvaluatedModels) -> dict[str, Any]:
    """Converts a comparison to the page's JSON.

    Raises:
        ValueError: the models cannot be compared.
    """
    comparison = compare_models(evaluated.models)
    groups = list(dict.fromkeys(_group(column) for column in comparison.columns if isinstance(column, TableColumn)))
    return {
        "models": [_model_record(model) for model in evaluated.models],
        "caption": CAPTION,
        "notes": comparison.notes,
        "faults": fault_notes(comparison),
        "metrics": [[name, metric_title(name)] for name in dict.fromkeys(cell.metric for cell in comparison.estimates)],
        "tables": [table._asdict() for table in comparison_tables(comparison)],
        "groups": groups,
        "bars": [
            {
                "model": comparison.models.index(cell.model),
                "metric": cell.metric,
                "group": groups.index(_group(cell.column)),
                "task": cell.column.task.value,
                "domain": cell.column.domain.value,
                "mean": cell.estimate.mean,
                "interval": cell.estimate.interval,
                "rows": cell.estimate.rows,
            }
            for cell in comparison.estimates
            if isinstance(cell.column, TableColumn)  # a benchmark has a task and a scale of its own: see the tables
        ],
    }


def _group(column: TableColumn) -> str:
    """Names the chart of a column: columns of one kind, with the same images shown."""
    kind = {Kind.OPEN: "Open questions", Kind.JUDGE: "Yes/no questions", Kind.CHOICE: "Questions with options"}
    shown = "" if column.images is ImageCondition.ORIGINAL else f", {column.images.value} images"
    return kind.get(column.kind, column.kind.value.capitalize()) + shown


def _model_record(model: ModelAnswers) -> dict[str, Any]:
    own = [suite for suite in model.suites if suite.images is ImageCondition.ORIGINAL]
    return {
        "name": model.name,
        "rows": sum(len(suite.answers) for suite in own),
        "suites": [suite.suite for suite in own],
        "failed": sum(bool(answer.failure) for suite in own for answer in suite.answers),
        "cut_off": sum(not all(answer.finished) for suite in own for answer in suite.answers),
        "settings": dict(model.suites[0].settings),
        "checkpoint": _checkpoint(Path(model.suites[0].model_path)),
    }


def _checkpoint(path: Path) -> dict[str, Any] | None:
    """Returns run, stage and step of a checkpoint of a run; None for any other model."""
    if path.parent.name != CHECKPOINTS or not path.name.isdecimal():
        return None
    stage = path.parent.parent
    return {"run": str(stage.parent), "stage": stage.name, "step": int(path.name)}
