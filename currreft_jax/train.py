"""Train a model on the stages of a config.

  python -m currreft_jax.train --config=configs/sft.py:tiny --config.stages[0].sources[0].file=rows.jsonl
  python -m currreft_jax.train --config=configs/sft.py:3b --workdir=runs/sft --config.optimizer.learning_rate=2e-6

Every setting of the config can be given on the command line; a misspelt one is refused. Metrics, checkpoints and the
settings lie in the workdir. A run that was interrupted goes on there when the same command is given again, and a
finished stage is skipped. SIGTERM saves and exits.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import config_flags

from currreft_jax.checkpoint import Checkpoints
from currreft_jax.config import Config, Init, validate
from currreft_jax.data import pipeline, processor
from currreft_jax.data.examples import Example
from currreft_jax.data.mixture import Mixture, mixture
from currreft_jax.data.packing import padding_waste
from currreft_jax.data.prompts import template
from currreft_jax.losses import loss_counts, loss_weights
from currreft_jax.metrics import Metrics
from currreft_jax.models import hf
from currreft_jax.models.lora import adapted, merged
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.sharding import data_shards, make_mesh, to_devices
from currreft_jax.step import (
    TrainState,
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    step_functions,
    zero_gradient,
)
from currreft_jax.structs import Array, GroupBatch

CHECKPOINTS, CONFIG, EXPORT = "checkpoints", "config.json", "model"
# Settings that may change while a run is interrupted: where and how it is computed and told, and the room for rows.
_FREE = (
    *("name", "logging.", "mesh.", "microbatches", "model.remat"),
    *("data.threads", "data.prefetch", "data.max_bad_rows", "data.prompt_lengths", "data.completion_lengths"),
    "data.slots",
)
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:VARIANT; the file has get_config(variant)")
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; runs/NAME where not given")


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not a number; the message names the step."""


class Interrupt:
    """Whether SIGTERM has asked the run to save and end. With several hosts JAX's own runtime watches for it."""

    def __init__(self) -> None:
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask) if jax.process_count() == 1 else None

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from.

    Attributes:
        groups: the microbatches.
        weights: `[P, 1, T]` of each, what its tokens count.
        about: metrics of the batch.
    """

    groups: Sequence[GroupBatch]
    weights: Sequence[Array]
    about: dict[str, float]


def run(config: Config, workdir: Path) -> Path | None:
    """Trains every stage that is not finished, each from where the one before it ended.

    Args:
        config: all settings.
        workdir: where everything is written; each stage has a folder of its own where there are several.

    Returns:
        The last stage's model in Hugging Face's layout; None if SIGTERM stopped the run, which was saved.

    Raises:
        ValueError: a setting, a row or a file is wrong; the message names it.
        NonFiniteError: training left the finite numbers.
    """
    validate(config)
    before = None
    with only_run(workdir), Interrupt() as interrupt:
        for number, stage in enumerate(config.stages):
            where = workdir / stage.name if len(config.stages) > 1 else workdir
            refuse_other_settings(config, number, where)
            if (where / EXPORT).exists():
                _say(f"stage {stage.name} is finished: {where / EXPORT}")
            elif not train_stage(config, number, before, where, interrupt):
                _say(f"stopped and saved in {where}; the same command goes on there")
                return None
            before = where
    assert before is not None
    return before / EXPORT


def train_stage(config: Config, number: int, before: Path | None, where: Path, interrupt: Interrupt) -> bool:
    """Trains one stage.

    Args:
        config: all settings.
        number: of the stage.
        before: folder of the stage before it, whose parameters it goes on with.
        where: folder of the stage.
        interrupt: asked after every step.

    Returns:
        Whether it was finished.
    """
    stage, written = config.stages[number], config.logging
    pixels = {"min_pixels": config.model.min_pixels or None, "max_pixels": config.model.max_pixels or None}
    reader = processor.load(config.model.path, **pixels)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    lora = config.model.lora
    model = Model(
        reader.config,
        mesh,
        jnp.dtype(config.model.dtype),
        config.model.remat,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
    )
    optimizer = make_optimizer(config.optimizer, stage.steps)
    rates = learning_rate(config.optimizer, stage.steps)
    gradient, move = step_functions(model, optimizer, config.optimizer)
    zeros = zero_gradient(model, config.optimizer)

    rows, ladders = read_rows(config, number, reader, model)
    place = {"fingerprint": rows.fingerprint(), "batch_size": config.data.batch_size, "seed": config.seed}
    steps_before = sum(it.steps for it in config.stages[:number])  # what hosts agree on when they are stopped rises
    with closing(rows), Checkpoints(where / CHECKPOINTS, written.keep_last) as checkpoints:
        state = start_state(config, number, model, optimizer, before, checkpoints, place)
        start = int(state.step)
        write_config(config, where)
        writes = jax.process_index() == 0
        with Metrics(where, step=start, steps=stage.steps, tensorboard=written.tensorboard, writes=writes) as metrics:
            pending: list[dict[str, Any]] = []
            began = time.perf_counter()
            batches = gold_batches(config, reader, model, rows, ladders, start)
            for step, batch in zip(range(start + 1, stage.steps + 1), batches, strict=False):
                total, loss = zeros(), jnp.float32(0)
                for groups, weights in zip(batch.groups, batch.weights, strict=True):
                    total, share = gradient(state.params, total, groups, weights)
                    loss += share
                state, norm = move(state, total)
                pending.append({"loss": loss, "grad_norm": norm, **batch.about})
                metrics.advance()
                stop = interrupt.asked or checkpoints.preempted(steps_before + step)
                saves = stop or step == stage.steps or step % written.save_every == 0
                if saves or step % written.log_every == 0:
                    values = means(jax.device_get(pending), step)
                    seconds = (time.perf_counter() - began) / len(pending)
                    tokens = {"tokens_per_second": values["num_tokens"] / seconds}
                    rate = {"learning_rate": float(np.asarray(rates(step - 1))), "time/step": seconds}
                    metrics.write(step, stage.name, {**values, **rate, **tokens})
                    pending, began = [], time.perf_counter()
                if saves:
                    checkpoints.save(step, _items(state), place)
                if stop and step < stage.steps:
                    return False
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(model.dtype), tree))
    hf.export(model, cast(merged(model, state.params)), reader, where / EXPORT)
    return True


def read_rows(
    config: Config, number: int, reader: processor.Processor, model: Model
) -> tuple[Mixture, pipeline.Ladders]:
    """The rows of a stage, and the shapes that batches of them may take."""
    prompts = config.data.batch_size // config.microbatches // data_shards(model.mesh)
    if config.data.batch_size != prompts * config.microbatches * data_shards(model.mesh):
        raise ValueError(
            f"data.batch_size ({config.data.batch_size}) does not divide into {config.microbatches} microbatches of"
            f" {data_shards(model.mesh)} data shards (mesh.data x mesh.fsdp): change one of them"
        )
    if data_shards(model.mesh) % jax.process_count():
        raise ValueError(
            f"{data_shards(model.mesh)} data shards (mesh.data x mesh.fsdp) do not divide into {jax.process_count()}"
            " hosts: a tensor axis must stay within a host"
        )
    ladders = pipeline.ladders(config.data, reader, prompts)
    rows = mixture(config.stages, number, config.data, config.seed)
    wording = template(config.data.template)
    rows = pipeline.usable(rows, reader, wording, config.data, ladders, with_answer=True)
    _refuse_other_rows(rows.fingerprint())
    _say(f"stage {config.stages[number].name}: {rows.size} rows of {len(rows.parts)} files")
    for reason, count in rows.left_out.items():
        _say(f"  {count} rows left out: {reason}")
    for error in rows.errors:
        _say(f"  {error}")
    return rows, ladders


def gold_batches(
    config: Config,
    reader: processor.Processor,
    model: Model,
    rows: Mixture,
    ladders: pipeline.Ladders,
    start: int,
) -> Iterator[Batch]:
    """The batches of supervised training from a step on, on the devices."""
    hosts, host = jax.process_count(), jax.process_index()
    shards = data_shards(model.mesh) // hosts
    wording = template(config.data.template)
    source = pipeline.Pipeline(
        rows, reader, wording, config.data, ladders, seed=config.seed, host=host, hosts=hosts, with_answer=True
    )
    for examples in source.batches(start):
        parts = pipeline.arranged(examples, model.config, shards, config.microbatches)
        tokens = sum(len(it.prompt.tokens) + len(it.tokens) for it in examples)
        needs = [pipeline.needs(part, model.config, shards) for part in parts]
        needed, counts, tokens = _agreed(needs, loss_counts([it.mask for it in examples]), np.array(tokens))
        groups = [
            pipeline.gold_batch(part, model.config, *ladders.shape(most), shards)
            for part, most in zip(parts, needed, strict=True)
        ]
        weights = [loss_weights(part.mask, config.loss_average, counts) for part in groups]
        totals = {"num_tokens": float(tokens), "learnt_tokens": float(counts[0])}
        yield Batch(
            to_devices(groups, model.mesh), to_devices(weights, model.mesh), {**padding(examples, groups), **totals}
        )


def padding(examples: Sequence[Example], groups: Sequence[GroupBatch]) -> dict[str, float]:
    """Shares of this host's batch that are padding."""
    prompts = sum(len(it.prompt.tokens) for it in examples)
    completions = sum(len(it.tokens) for it in examples)
    patches = [padding_waste(part.prompts).get("patch_waste", 0.0) for part in groups]
    return {
        "padding/prompt_waste": 1 - prompts / sum(part.prompts.tokens.size for part in groups),
        "padding/patch_waste": float(np.mean(patches)),
        "padding/completion_waste": 1 - completions / sum(part.tokens.size for part in groups),
    }


def start_state(
    config: Config,
    number: int,
    model: Model,
    optimizer: Any,
    before: Path | None,
    checkpoints: Checkpoints,
    place: dict[str, Any],
) -> TrainState:
    """The newest checkpoint of the stage, or the state it starts with.

    Raises:
        ValueError: the checkpoint was made with other rows, batches or seed.
    """
    abstract = abstract_state(model, optimizer)
    found = checkpoints.restore(_items(abstract))
    if found:
        step, items, saved = found
        if changed := [name for name in place if place[name] != saved[name]]:
            raise ValueError(
                f"{checkpoints.folder} was made with another {', '.join(changed)} of the data: put it back as it was,"
                " or take another workdir"
            )
        _say(f"going on from step {step}")
        return TrainState(jax.device_put(jnp.int32(step), abstract.step.sharding), items["params"], items["optimizer"])
    return init_state(model, optimizer, start_params(config, number, model, before))


def start_params(config: Config, number: int, model: Model, before: Path | None) -> Parameters:
    """The parameters that a stage starts with, fp32: the last ones of the stage before it, if there is one."""
    if before:
        last = config.stages[number - 1].steps
        with Checkpoints(before / CHECKPOINTS, 1) as checkpoints:
            found = checkpoints.restore({"params": model.abstract(jnp.float32)})
        if not found or found[0] != last:
            raise ValueError(
                f"{before / CHECKPOINTS} does not hold step {last}, which stage {config.stages[number].name} goes on"
                f" from: remove {before / EXPORT}, and the same command trains the rest of that stage again"
            )
        return found[1]["params"]
    if config.model.init is Init.RANDOM:
        return model.init(config.seed)
    plain = hf.load(config.model.path, mesh=model.mesh, dtype=model.dtype, param_dtype=jnp.float32)[1]
    return adapted(model, plain, config.seed) if model.adapters else plain


def means(steps: Sequence[dict[str, Any]], last: int) -> dict[str, float]:
    """The mean of each metric over some steps.

    Raises:
        NonFiniteError: a loss or a gradient is not a number.
    """
    for number, values in enumerate(steps, last - len(steps) + 1):
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            raise NonFiniteError(
                f"step {number}: loss {values['loss']}, gradient norm {values['grad_norm']}; lower the learning rate,"
                " or look at the rows of this step"
            )
    return {name: float(np.mean([values.get(name, 0.0) for values in steps])) for name in steps[-1]}


def write_config(config: Config, where: Path) -> None:
    """Writes the settings beside what they lead to."""
    if jax.process_index() == 0:
        where.mkdir(parents=True, exist_ok=True)
        (where / CONFIG).write_text(json.dumps(_plain(config), indent=2) + "\n", "utf-8")


def refuse_other_settings(config: Config, number: int, where: Path) -> None:
    """Refuses to go on where a stage was trained with settings that lead elsewhere.

    Raises:
        ValueError: naming the settings that differ.
    """
    path = where / CONFIG
    if not path.exists():
        return
    there, now = json.loads(path.read_text("utf-8")), _plain(config)
    for settings in (there, now):
        settings["stages"] = settings["stages"][: number + 1]
    there, now = _flat(there), _flat(now)
    differing = [
        f"{name} was {there.get(name)}, and is {now.get(name)}"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name) and not name.startswith(_FREE)
    ]
    if differing:
        raise ValueError(f"{path}: {'; '.join(differing)}: put it back as it was, or take another workdir")


@contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of the workdir.

    Raises:
        ValueError: one is there.
    """
    if jax.process_index():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {workdir}: wait for it, or take another workdir") from None
        yield


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        sys.exit(f"train: {argv[1]} is no setting; write --config.NAME=VALUE")
    if _CONFIG.value is None:
        sys.exit("train: --config is missing; configs/ has some, such as --config=configs/sft.py")
    config = _CONFIG.value
    logging.set_verbosity(logging.WARNING)  # Orbax tells at length what it does
    try:
        done = run(config, Path(_WORKDIR.value or f"runs/{config.name}"))
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteError) as error:  # what the package refuses with
        sys.exit(f"train: {error}")
    if done:
        _say(f"done: {done}")


def _agreed(
    needs: Sequence[pipeline.Needs], counts: np.ndarray, tokens: np.ndarray
) -> tuple[list[pipeline.Needs], np.ndarray, np.ndarray]:
    """The largest needs of any host, and the counts of all."""
    if jax.process_count() == 1:
        return list(needs), counts, tokens
    own = np.array([dataclasses.astuple(part) for part in needs])
    needed, *added = multihost_utils.process_allgather((own, counts, tokens))
    return [pipeline.Needs(*map(int, row)) for row in needed.max(axis=0)], *(it.sum(axis=0) for it in added)


def _refuse_other_rows(fingerprint: str) -> None:
    """Raises on every host if one has other rows."""
    own = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    if jax.process_count() > 1 and np.ptp(multihost_utils.process_allgather(own), axis=0).any():
        raise ValueError("the hosts have different rows: give all of them the same files, and see what each left out")


def _plain(config: Config) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=lambda member: member.value))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """`{"a": [{"b": 1}]}` -> `{"a[0].b": 1}`."""
    if isinstance(value, dict):
        parts = {f"{name}.{key}" if name else key: inner for key, inner in value.items()}
    elif isinstance(value, list):
        parts = {f"{name}[{index}]": inner for index, inner in enumerate(value)}
    else:
        return {name: value}
    return {path: leaf for key, inner in parts.items() for path, leaf in _flat(inner, key).items()}


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": state.optimizer}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(f"train: {text}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
