"""The static shapes of a run: those of the settings, or a few that are fitted to the rows and kept in the workdir."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from currreft_jax.config import BatchLayout, Config, Method, OnBadRow, Shapes, has_own_batches
from currreft_jax.config.wording import plural
from currreft_jax.data import pipeline
from currreft_jax.data.buckets import BatchDims, ShapeBuckets, config_buckets
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.packing import BatchShape
from currreft_jax.data.prompts import load_template
from currreft_jax.data.shape_fitting import draw_steps, fit_lengths, fit_shapes, largest_dims
from currreft_jax.runtime.distributed import is_main
from currreft_jax.runtime.multihost import same_on_all_hosts
from currreft_jax.runtime.workdir import SHAPES, flat_settings
from currreft_jax.session.session import Session
from currreft_jax.training.batches import layout_on
from currreft_jax.training.console import say

MAX_STEPS = 4000  # whose batches are drawn
# Settings that decide which batches there are, by the beginnings of their names.
_BASIS = (
    *("seed", "method", "microbatches", "stages", "model.path", "model.min_pixels", "model.max_pixels"),
    *("data.batch_size", "data.template", "data.prompt_lengths", "data.completion_lengths", "data.slots"),
    *("data.on_bad_row", "data.pass_rates", "data.keep_pass_rates", "grpo.minibatches"),
    *("sampling.group_size", "sampling.max_new_tokens", "sampling.segment"),
)


def fit_run_buckets(session: Session, config: Config, stage_index: int, workdir: Path, stage_dir: Path) -> ShapeBuckets:
    """Returns the static shapes of a stage: those of all stages that are batched alike.

    A stage that may be batched in another way has shapes of its own, in its own folder. They are fitted when it begins:
    its rows need not be there before.

    Args:
        session: session of the stage.
        config: settings of the run.
        stage_index: index of the stage.
        workdir: folder of the run.
        stage_dir: folder of the stage.
    """
    if has_own_batches(config.stages[stage_index]):
        return run_buckets(session, stage_dir, [stage_index])
    alike = [index for index, stage in enumerate(config.stages) if not has_own_batches(stage)]
    return run_buckets(session, workdir, alike)


def run_buckets(session: Session, folder: Path, stage_indices: Sequence[int] | None = None) -> ShapeBuckets:
    """Returns the static shapes of stages that are batched alike; fits them to the rows if the settings ask for it.

    Fitted shapes are kept in a folder: a resumed run takes those that it began with. They are fitted again if the
    settings or the layout of the batch have changed.

    Args:
        session: session of one of the stages.
        folder: where the shapes are kept.
        stage_indices: indices of the stages; None for all.

    Raises:
        MixtureError: a row of one of the stages cannot be used, and the config does not skip it.
        ValueError: the file of shapes is damaged, or the hosts fit different shapes.
    """
    config = session.config
    layout = layout_on(config, session.model.mesh)
    given = config_buckets(config, session.processor, layout)
    if config.data.shapes is Shapes.BUCKETS:
        return given
    stage_indices = range(len(config.stages)) if stage_indices is None else stage_indices
    path, basis = folder / SHAPES, _basis(config, stage_indices, layout)
    buckets = _read_shapes(path, basis)
    is_fitted = buckets is None
    if buckets is None:
        buckets = _fit_buckets(session, stage_indices, layout, given)
    fitted = {name: value for name, value in asdict(buckets).items() if name != "file"}
    content = json.dumps({**fitted, "basis": basis}, indent=1) + "\n"
    if not same_on_all_hosts(hashlib.blake2b(content.encode(), digest_size=16).digest()):
        raise ValueError("the hosts fit different shapes: give all of them the same images")
    if is_fitted and is_main():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(content, "utf-8")
        partial.replace(path)
    lengths = ", ".join(map(str, buckets.completion_lengths))
    say(f"shapes: prompts of {' or '.join(map(str, buckets.shapes))}; completions of {lengths} tokens; see {path}")
    return replace(buckets, file=str(path))


def _basis(config: Config, stage_indices: Sequence[int], layout: BatchLayout) -> dict[str, Any]:
    """Returns what the shapes are fitted to, as JSON values by name."""
    config = replace(config, stages=[config.stages[index] for index in stage_indices])
    settings = {name: value for name, value in flat_settings(config).items() if name.startswith(_BASIS)}
    return {**settings, **{f"layout.{name}": value for name, value in layout._asdict().items()}}


def _read_shapes(path: Path, basis: dict[str, Any]) -> ShapeBuckets | None:
    """Reads the shapes of a run; None if there are none for this basis."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        changed = [name for name in basis | content["basis"] if basis.get(name) != content["basis"].get(name)]
        shapes, step_shapes = (
            tuple(BatchShape(**shape) for shape in content[name]) for name in ("shapes", "step_shapes")
        )
        buckets = ShapeBuckets(shapes, step_shapes, tuple(content["completion_lengths"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and the same command fits the shapes again"
        ) from error
    if changed:
        say(f"the shapes in {path} were fitted with another {', '.join(changed[:3])}: they are fitted again")
        return None
    return buckets


def _fit_buckets(
    session: Session, stage_indices: Sequence[int], layout: BatchLayout, given: ShapeBuckets
) -> ShapeBuckets:
    """Fits shapes to the batches of stages."""
    config, model = session.config, session.processor.config
    rows, microbatches, steps = _draw_batches(session, stage_indices, layout, given)
    num_steps = sum(config.stages[index].steps for index in stage_indices)
    is_complete = num_steps <= MAX_STEPS and config.data.on_bad_row is OnBadRow.ERROR
    limit = given.shapes[-1].length

    def fit(drawn: Sequence[BatchDims], rows_per_shard: int) -> tuple[BatchShape, ...]:
        largest = largest_dims(rows, drawn, rows_per_shard, layout.group_parts, is_complete=is_complete)
        return fit_shapes(drawn, largest, limit, rows_per_shard, model)

    shapes = fit(microbatches, layout.rows_per_shard)
    step_shapes = (
        shapes if layout.num_microbatches == 1 else fit(steps, layout.rows_per_shard * layout.num_microbatches)
    )
    if config.method is Method.GRPO:
        return ShapeBuckets(shapes, step_shapes, given.completion_lengths)
    lengths = fit_lengths(
        [dims.completion_length for dims in microbatches],
        max(row.completion_length for row in rows),
        given.completion_lengths[-1],
    )
    return ShapeBuckets(shapes, step_shapes, lengths)


def _draw_batches(
    session: Session, stage_indices: Sequence[int], layout: BatchLayout, given: ShapeBuckets
) -> tuple[list[BatchDims], list[BatchDims], list[BatchDims]]:
    """Draws the batches of stages, or of the first steps of each if there are many.

    Returns:
        The sizes of all rows; the dimensions of microbatches; and those of whole steps.
    """
    config = session.config
    template, with_answer = load_template(config.data.template), config.method is Method.SFT
    share = min(1.0, MAX_STEPS / sum(config.stages[index].steps for index in stage_indices))
    sizes: list[BatchDims] = []
    microbatches: list[BatchDims] = []
    whole: list[BatchDims] = []
    with ExitStack() as stack:
        mixtures = [
            stack.enter_context(closing(load_mixture(config.stages, index, config.data, config.seed)))
            for index in stage_indices
        ]
        num_rows = plural(sum(mixture.num_rows for mixture in mixtures), "row")
        say(f"measuring {num_rows} of {plural(len(mixtures), 'stage')}: shapes are fitted to their texts and images")
        measured = pipeline.measure_rows(
            mixtures, session.processor, template, config.data, given, with_answer=with_answer
        )
        for stage_index, (rows, of_rows) in zip(stage_indices, measured, strict=True):
            sizes += of_rows.values()
            steps = draw_steps(
                rows,
                of_rows,
                max(1, int(config.stages[stage_index].steps * share)),
                layout,
                jax.process_count(),
                config.seed,
            )
            microbatches += [dims for parts, _ in steps for dims in parts]
            whole += [dims for _, dims in steps]
    return sizes, microbatches, whole
