"""Rejected sampling before a stage, which trains on the best answers of the model that it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax

from currreft_jax.config import REJECT, Config, EvaluatedModel, JudgeKind, Rejection
from currreft_jax.config.missing import name_nearest
from currreft_jax.data.prompts import load_template
from currreft_jax.endpoint.settings import validate_server
from currreft_jax.judges import validate_judge
from currreft_jax.rejection.runner import reject
from currreft_jax.runtime.workdir import CONFIG, EXPORT
from currreft_jax.training.console import say
from currreft_jax.training.interrupt import AFTER_STEP, AT_PROGRESS, Interrupt


class _StopRequested(Exception):
    """A signal has asked the run to stop while answers are sampled and judged."""


def keep_samples(
    config: Config, stage_index: int, previous_dir: Path | None, stage_dir: Path, workdir: Path, interrupt: Interrupt
) -> bool:
    """Samples and judges the rows of a stage with rejected sampling, into the folder `reject` of the workdir.

    All hosts call it. A job that was stopped goes on where it was. A stage that has begun keeps the rows that it began
    with.

    Args:
        config: settings of the run.
        stage_index: index of the stage.
        previous_dir: folder of the stage before it, whose model answers.
        stage_dir: folder of the stage.
        workdir: folder of the run.
        interrupt: asked at every line of progress.

    Returns:
        False if the run was asked to stop before the rows were kept.

    Raises:
        ValueError: rows, model or answers cannot be used.
        EndpointError: a server cannot be reached, or its budget is spent.
    """
    stage, folder = config.stages[stage_index], workdir / REJECT
    if not stage.rejection or (stage_dir / CONFIG).exists():
        return True

    def log(line: str) -> None:
        say(f"reject: {line}")
        if interrupt.requested:
            raise _StopRequested

    say(f"stage {stage.name}: rejected sampling into {folder}")
    if jax.process_count() == 1:  # several hosts agree on a stop after a step
        interrupt.response = AT_PROGRESS
    try:
        files = reject(rejection_settings(config, stage.rejection, previous_dir), folder, log)
    except _StopRequested:
        return False
    interrupt.response = AFTER_STEP
    if files:
        say(f"{files.num_kept} rows kept to train on, {files.num_held_out} held out: {files.kept}")
    return True


def refuse_missing_rows(config: Config) -> None:
    """Refuses stages whose files do not exist, before the stages ahead of them are trained.

    Raises:
        FileNotFoundError: naming the file, the setting and the remedy.
    """
    for stage_index, stage in enumerate(config.stages):
        settings = {
            "sources": stage.sources,
            "held_out": stage.held_out,
            "out_of_domain": stage.out_of_domain,
            "held_out_loss": stage.held_out_loss,
        }
        if stage.rejection:
            settings["rejection.sources"] = [quota.source for quota in stage.rejection.sources]
            suites = [] if stage.rejection.world else stage.rejection.suites  # those of a world may be drawn later
            for index, suite in enumerate(suites):
                settings[f"rejection.suites[{index}].sources"] = suite.sources
        for name, sources in settings.items():
            for index, source in enumerate(sources):
                if not Path(source.file).exists():
                    raise FileNotFoundError(
                        f"{source.file} of config.stages[{stage_index}].{name}[{index}] does not exist"
                        f"{name_nearest(source.file)}; name rows of your own with --rows and --held-out, or build them"
                        " (docs/data.md)"
                    )


def validate_servers(config: Config) -> None:
    """Refuses impossible templates, judges and servers of rejected sampling before the stages ahead are trained.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    for stage_index, stage in enumerate(config.stages):
        if not stage.rejection:
            continue
        rejection = stage.rejection
        try:
            load_template(rejection.template)
            if rejection.model.endpoint:
                validate_server(rejection.model.endpoint, rejection.endpoint, url_name="model.endpoint")
            for judge in filter(None, (rejection.judge, rejection.second_judge)):
                validate_judge(judge)
        except ValueError as error:
            raise ValueError(f"config.stages[{stage_index}].rejection: {error}") from error


def announce_judges(config: Config, workdir: Path) -> None:
    """Says which servers have to run when the stages before theirs are trained, unless they have been asked already."""
    for stage_index, stage in enumerate(config.stages):
        if not stage.rejection or stage.rejection.judge.kind is JudgeKind.RULES or (workdir / REJECT).exists():
            continue
        judge = stage.rejection.judge
        say(
            f"stage {stage.name}: its answers are judged by {judge.model} at {judge.url}, which has to run by then;"
            f" --config.stages[{stage_index}].rejection.judge.kind=rules needs no server"
        )


def rejection_settings(config: Config, rejection: Rejection, previous_dir: Path | None) -> Rejection:
    """Returns the settings of rejected sampling, with the run's seed and the stage's first model for none."""
    if rejection.seed is None:
        rejection = replace(rejection, seed=config.seed)
    if rejection.model.path:
        return rejection
    model = EvaluatedModel(str(previous_dir / EXPORT) if previous_dir else config.model.path)
    return replace(rejection, model=model)
