"""Leaks: images and questions of a suite among the rows that a model was trained on. Loads no JAX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from currreft_jax.config import Config, EvaluatedModel
from currreft_jax.config.wording import plural
from currreft_jax.data.findings import NOTES, Finding
from currreft_jax.data.leaks import find_leaks
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.row_checks import ImageInfo, LocatedRow
from currreft_jax.evaluation.suites import LoadedSuite, SuiteError, inspect_images
from currreft_jax.runtime.workdir import CHECKPOINTS, EXPORT, is_stage_dir, read_config, with_kept_rows

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a comparison with the training rows of a model found.

    Attributes:
        findings: by suite.
        unchecked: why there was no comparison, or only a part of one; empty otherwise.
        template: prompt template that the model was trained with; empty if it is unknown.
    """

    findings: dict[str, list[Finding]]
    unchecked: str = ""
    template: str = ""

    def summary(self, suite: str) -> int | str:
        """Returns the number of leaks into a suite, or why it is unknown."""
        return f"not checked: {self.unchecked}" if self.unchecked else len(self.findings[suite])


def find_training_leaks(
    model: EvaluatedModel, suites: Sequence[LoadedSuite], images: dict[str, ImageInfo], threads: int
) -> LeakReport:
    """Compares suites with the training rows of the runs that made a model.

    Args:
        model: of the models of this program only the folders of a run are known to be trained on something.
        suites: the suites.
        images: images by path; those of the training rows are added.
        threads: threads that read images.
    """
    findings: dict[str, list[Finding]] = {suite.settings.name: [] for suite in suites}
    if model.endpoint:
        return LeakReport(findings, "a server does not say what its model was trained on")
    try:
        runs = list(_training_runs(Path(model.path)))
        for config, stage_index in runs:
            for index in range(stage_index + 1):
                mixture = load_mixture(config.stages, index, config.data, config.seed)
                rows = [
                    LocatedRow(source.file[int(row)], str(source.file.path), source.file.location(int(row)), "train")
                    for source in mixture.sources
                    for row in source.indices
                ]
                mixture.close()
                inspect_images(iter(rows), images, threads)
                for suite in suites:
                    leaks = find_leaks(rows, suite.located_rows(), images)
                    findings[suite.settings.name] += [leak for leak in leaks if leak.problem not in NOTES]
    except (OSError, ValueError) as error:
        return LeakReport(findings, f"the training rows cannot be read ({error})")
    if not runs:
        return LeakReport(findings, "the model is of no run whose training rows are known")
    return LeakReport(findings, template=runs[0][0].data.template)


def refuse_leaks(model: str, report: LeakReport) -> None:
    """Refuses suites that share rows with a model's training.

    Raises:
        SuiteError: naming the first 20 of the rows, and the remedy.
    """
    leaks = [f"{leak.location}: {leak.message}" for findings in report.findings.values() for leak in findings]
    if leaks:
        more = [f"and {len(leaks) - _SHOWN} more"] if len(leaks) > _SHOWN else []
        suites = ", ".join(name for name, findings in report.findings.items() if findings)
        remedy = "leave them out, or accept them with --config.allow_leaks"
        count = plural(len(leaks), "image or question", "images or questions")
        head = f"{model} was trained on {count} of {suites}; {remedy}:"
        raise SuiteError("\n  ".join([head, *leaks[:_SHOWN], *more]))


def _training_runs(model: Path) -> Iterator[tuple[Config, int]]:
    """Yields the settings and the last stage of each run that made a model, from the last run back to the first."""
    seen: set[Path] = set()
    while (stage_dir := _stage_dir(model)) and stage_dir.resolve() not in seen:
        seen.add(stage_dir.resolve())
        config = read_config(stage_dir)
        config = with_kept_rows(config, stage_dir.parent if len(config.stages) > 1 else stage_dir)
        names = [stage.name for stage in config.stages]
        # With a single stage, its folder is the run's, of any name.
        yield config, names.index(stage_dir.resolve().name) if len(names) > 1 else 0
        model = Path(config.model.path)


def _stage_dir(model: Path) -> Path | None:
    """Returns the folder of the stage that a model belongs to; None for other models."""
    if model.parent.name == CHECKPOINTS and model.name.isdecimal():
        return model.parent.parent
    stage_dir = model.parent if model.name == EXPORT else model
    return stage_dir if is_stage_dir(stage_dir) else None
