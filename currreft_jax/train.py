"""Train a model on the stages of a config.

  python -m currreft_jax.train --config=configs/curriculum.py
  python -m currreft_jax.train --config=configs/stage1.py:3b --config.data.batch_size=16
  python -m currreft_jax.train --config=configs/sft.py:tiny --config.stages[0].sources[0].file=rows.jsonl

Every setting of the config can be given on the command line; a misspelt one is refused. Metrics, completions,
checkpoints and the settings lie in the workdir. A run that was interrupted goes on there when the same command is given
again, and a finished stage is skipped. SIGTERM, SIGUSR1 and, on one machine, Ctrl-C save after the step, and end with
exit code 75: to be started again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils
from ml_collections import config_flags

from currreft_jax import curriculum, distributed
from currreft_jax.checkpoint import Checkpoints
from currreft_jax.config import Config, Handover, Init, Method, Reference, validate
from currreft_jax.data import pipeline, processor, world_rows
from currreft_jax.data.examples import Example
from currreft_jax.data.mixture import Mixture, mixture
from currreft_jax.data.prompts import template
from currreft_jax.experience import Context, drawn_batch, gold_batch, shard_prompts
from currreft_jax.held_out import HeldOut, held_out_rows, measure
from currreft_jax.losses import PER_TOKEN
from currreft_jax.metrics import Metrics
from currreft_jax.models import hf
from currreft_jax.models.lora import add_adapters, merge_adapters
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.planning.fit import refuse_too_large
from currreft_jax.planning.parts import Programs
from currreft_jax.rewards import MathsPool, RewardError, check_rows
from currreft_jax.rewards.maths_pool import MathsPoolError
from currreft_jax.sharding import data_shards, make_mesh
from currreft_jax.step import (
    TrainState,
    abstract_state,
    caster,
    init_state,
    learning,
    moments_for_a_new_stage,
    trained_model,
    update_programs,
    updating,
)
from currreft_jax.workdir import (
    CHECKPOINTS,
    EXPORT,
    MATRIX,
    ROLLOUTS,
    only_run,
    refuse_other_settings,
    write_config,
)

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:VARIANT; the file has get_config(variant)")
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; runs/NAME where not given")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, where no launcher tells it")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes there are, where no launcher tells it")
_PROCESS = flags.DEFINE_integer("process_id", None, "which of them this is, from 0 on, where no launcher tells it")


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not a number; the message names the step."""


class Paused(Exception):
    """A guard rail was met; the run was saved."""


# What the package refuses with; the messages are made to be read alone, and --verbosity=1 shows where they come from.
_REFUSALS = (
    *(ValueError, OSError, ModuleNotFoundError, NonFiniteError, Paused),
    *(RewardError, MathsPoolError, distributed.MissingProcess),
)


class Interrupt:
    """Whether SIGTERM, SIGUSR1 or, on one host, a first Ctrl-C has asked the run to save and end.

    With several hosts JAX's own runtime watches for SIGTERM, and tells all of them; SIGUSR1 is passed on as that.
    """

    def __init__(self) -> None:
        self.asked = False
        self._steps = 0
        one = jax.process_count() == 1
        asking = (signal.SIGTERM, signal.SIGINT) if one else ()
        self._before: dict[int, Any] = {number: signal.signal(number, self._ask) for number in asking}
        self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))

    def __enter__(self) -> Interrupt:
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def after_step(self, checkpoints: Checkpoints) -> bool:
        """Whether to save and end; all hosts learn it at the same call, of which they make one a step."""
        self._steps += 1
        self.asked = self.asked or checkpoints.preempted(self._steps)
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            os.write(sys.stderr.fileno(), b"\ntrain: saves after this step, and ends; Ctrl-C again ends at once\n")


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
        Paused: a guard rail was met.
    """
    validate(config)
    before = None
    lead = distributed.is_main()
    with only_run(workdir) if lead else nullcontext(), Interrupt() as interrupt:
        if config.data.world:
            if lead:
                world_rows.make(Path(config.data.world), _say)
            distributed.barrier("the world is drawn", 0, 1800)
        matrix = curriculum.Matrix(workdir / MATRIX, writes=lead)
        for number, stage in enumerate(config.stages):
            where = workdir / stage.name if len(config.stages) > 1 else workdir
            refuse_other_settings(config, number, where)
            if (where / EXPORT).exists():
                _say(f"stage {stage.name} is finished: {where / EXPORT}")
            else:
                finished = train_stage(config, number, before, where, interrupt, matrix)
                if not finished or (interrupt.asked and stage is not config.stages[-1]):
                    _say(f"stopped and saved in {where}; the same command goes on there")
                    return None
            before = where
    assert before is not None
    if len(matrix):
        _say(f"held-out reward at temperature {config.sampling.temperature:g}, with 95% intervals\n{matrix.table()}")
    return before / EXPORT


def train_stage(
    config: Config, number: int, before: Path | None, where: Path, interrupt: Interrupt, matrix: curriculum.Matrix
) -> bool:
    """Trains one stage.

    Args:
        config: all settings.
        number: of the stage.
        before: folder of the stage before it, whose parameters it goes on with.
        where: folder of the stage.
        interrupt: asked after every step.
        matrix: where measurements of held-out rows go.

    Returns:
        Whether it was finished.
    """
    stage, written, grpo = config.stages[number], config.logging, config.method is Method.GRPO
    pixels = {"min_pixels": config.model.min_pixels or None, "max_pixels": config.model.max_pixels or None}
    reader = processor.load(config.model.path, **pixels)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    model = trained_model(config.model, reader.config, mesh, reader.tokenizer_size)
    moves, rule, optimizer, rates, gradient = learning(config, number)
    programs, cast = update_programs(model, optimizer, rule, gradient), caster(model)
    update = updating(programs)
    if config.plan_first:
        state = abstract_state(model, optimizer)
        refuse_too_large(Programs(config, reader, reader.eos_token_ids, model, state, programs))

    with ExitStack() as opened:
        scores = grpo or any(it.held_out for it in config.stages)
        pool = opened.enter_context(MathsPool(config.rewards.maths)) if scores else None
        rows, ladders = read_rows(config, number, reader, model)
        opened.enter_context(closing(rows))
        place = {"fingerprint": rows.fingerprint(), "batch_size": config.data.batch_size, "seed": config.seed}
        checkpoints = opened.enter_context(Checkpoints(where / CHECKPOINTS, written.keep_last))
        state, start, ended = start_state(config, number, model, optimizer, before, checkpoints, place)
        reference = cast(reference_params(config, number, model, before)) if grpo and config.grpo.kl_coef else None
        context = Context(config, number, reader, model, ladders, pool, reference)
        if grpo:
            refuse_unscorable(rows, config, pool)
        looking = Looking(context, held_out_rows(config, reader, pool), matrix)
        lead = distributed.is_main()
        if lead:
            write_config(config, where)
            forget_rollouts(where / ROLLOUTS, start)
        looking.begin(cast(state.params), start)
        metrics = opened.enter_context(
            Metrics(where, written, name=config.name, step=start, steps=stage.steps, writes=lead)
        )
        source = example_batches(config, reader, model, rows, ladders, start)
        window = Window(where)
        for step, examples in zip(range(start + 1, 1 if ended else stage.steps + 1), source, strict=False):
            batch = drawn_batch(context, examples, cast(state.params), step) if grpo else gold_batch(context, examples)
            state, told = update(state, batch.updates)
            window.add(step, {**told, **batch.about}, batch.told)
            if grpo and _shows(step, stage.steps, written.rollouts_every):
                write_rows(where / ROLLOUTS / f"{step}.jsonl", batch.told())
            del batch  # its arrays would lie beside those of the next one
            metrics.advance()
            distributed.reached(step)
            stop = interrupt.after_step(checkpoints)
            looks = step == stage.steps or _due(written.evaluate_every, step)
            saves = stop or looks or _due(written.save_every, step)
            if not saves and not _due(written.log_every, step):
                continue
            lines, broken = window.close()
            if looks and not broken:
                seen, ended = looking.look(cast(state.params), step)
                lines[-1].update(seen)
            for values in lines:
                rate = float(np.asarray(rates(moves * (values["step"] - 1))))
                metrics.write({"stage": stage.name, **values, "learning_rate": rate})
            if broken:
                raise broken
            reason = guard(config, lines)
            if saves or reason:
                score = lines[-1]["reward"] if grpo else -lines[-1]["loss"]
                checkpoints.save(step, _items(state), {**place, "ended": ended}, score=score)
            if reason:
                raise Paused(f"stage {stage.name}, step {step}: {reason}; it is saved in {where}")
            if stop and step < stage.steps:
                return False
            if ended:
                break
            window.start_clock()  # looking and saving were no step
    plain = caster(dataclasses.replace(model, lora_rank=0))
    hf.export(model, plain(merge_adapters(model, state.params)), reader, where / EXPORT)
    return True


class Window:
    """The metrics of some steps, left on the device until it is asked for all of them together."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._open: list[tuple[int, dict[str, Any], Callable[[], list[dict[str, Any]]]]] = []
        self.start_clock()

    def start_clock(self) -> None:
        """What happened until now was not a step."""
        self._began = time.perf_counter()

    def add(self, step: int, values: dict[str, Any], told: Callable[[], list[dict[str, Any]]]) -> None:
        """Adds a step."""
        self._open.append((step, values, told))

    def close(self) -> tuple[list[dict[str, float]], NonFiniteError | None]:
        """One object of metrics for each step, with its time as a mean over them.

        A loss or a gradient that is not a number ends the list with the step before it, and comes as an error; what
        that step learnt from is written to a file.
        """
        steps = jax.device_get([values for _, values, _ in self._open])
        seconds = (time.perf_counter() - self._began) / len(steps)
        lines = []
        for (step, _, told), values in zip(self._open, steps, strict=True):
            if not np.isfinite([values["loss"], values["grad_norm"]]).all():
                dump = write_rows(self._where / "nonfinite" / f"{step}.jsonl", told())
                return lines, NonFiniteError(
                    f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. What it learnt from is"
                    f" in {dump}; lower the learning rate or look at those rows. Checkpoints are of steps before it"
                )
            for name in PER_TOKEN:
                if name in values:
                    values[name] = values[name] / max(1.0, values["learnt_tokens"] * values["passes"])
            values = {name: float(value) for name, value in values.items() if name != "passes"}
            speed = {"time/step": seconds, "tokens_per_second": values["num_tokens"] / seconds}
            lines.append({"step": step, **values, **speed})
        self._open = []
        self.start_clock()
        return lines, None


class Looking:
    """Looks at the held-out rows of all stages, and at what they say of the curriculum."""

    def __init__(self, context: Context, sets: Sequence[HeldOut], matrix: curriculum.Matrix) -> None:
        self._context, self._sets, self._matrix = context, sets, matrix
        self._stage = context.config.stages[context.number]

    def begin(self, params: Parameters, start: int) -> None:
        """Forgets what is behind the step that is gone on from; before the very first one it looks."""
        self._matrix.go_on_from(self._stage.name, start)
        if self._sets and self._context.number == 0 and start == 0 and not self._matrix.has("", 0):
            self._matrix.add(measure(self._context, params, self._sets, "", 0, greedy=True))

    def look(self, params: Parameters, step: int) -> tuple[dict[str, float], bool]:
        """Metrics, and whether the stage has learnt enough."""
        if not self._sets:
            return {}, False
        greedy = step == self._stage.steps or self._stage.promote_above < 1
        now = measure(self._context, params, self._sets, self._stage.name, step, greedy=greedy)
        told: dict[str, float] = {}
        own = False
        numbers = {it.name: it.number for it in self._sets}
        for it in now:
            told[f"held_out/{it.held_out}/reward"] = it.reward
            if it.passed is not None:
                told[f"held_out/{it.held_out}/pass"] = it.passed / it.rows
            best = curriculum.fallen(self._matrix.seen, it)
            if best and numbers[it.held_out] < self._context.number:
                told[f"held_out/{it.held_out}/fallen"] = best.reward - it.reward
                _say(
                    f"brick wall: {it.held_out} fell from {best.reward:.3f} to {it.reward:.3f} while {it.stage} is"
                    " trained; replay of earlier stages, a larger kl_coef or a lower learning rate may help"
                )
            if it.held_out == self._stage.name:
                own = self._stage.promote_above < 1 and curriculum.promoted(it, self._stage.promote_above)
        self._matrix.add(now)
        if own and step < self._stage.steps:
            _say(f"stage {self._stage.name} is promoted at step {step}: its pass rate is above its gate")
        return told, own


def guard(config: Config, lines: Sequence[dict[str, float]]) -> str:
    """Why the run has to pause, if it has to."""
    if config.method is not Method.GRPO:
        return ""
    settings = config.grpo

    def mean(name: str, lines: Sequence[dict[str, float]]) -> float:
        return float(np.mean([line.get(name, 0.0) for line in lines]))

    learnt = [line for line in lines if line["learnt_tokens"]]  # with `mask_truncated` a step may learn nothing
    if settings.max_kl and learnt and (kl := mean("kl", learnt)) > settings.max_kl:
        return f"KL {kl:.4g} is above grpo.max_kl = {settings.max_kl}"
    if learnt and (entropy := mean("entropy", learnt)) < settings.min_entropy:
        return f"entropy {entropy:.4g} is below grpo.min_entropy = {settings.min_entropy}"
    if (share := mean("completions/clipped_ratio", lines)) > settings.max_truncated:
        return f"{share:.1%} of the completions were cut off, more than grpo.max_truncated = {settings.max_truncated}"
    return ""


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes JSON lines, each host its own file."""
    if jax.process_count() > 1:
        path = path.with_name(f"{path.stem}-{jax.process_index()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def forget_rollouts(folder: Path, step: int) -> None:
    """Removes what was written of steps behind the one that is gone on from."""
    for path in folder.glob("*.jsonl"):
        if int(path.stem.partition("-")[0]) > step:
            path.unlink()


def read_rows(
    config: Config, number: int, reader: processor.Processor, model: Model
) -> tuple[Mixture, pipeline.Ladders]:
    """The rows of a stage, and the shapes that batches of them may take."""
    gold, prompts = config.method is Method.SFT, shard_prompts(config, model.mesh)
    if data_shards(model.mesh) % jax.process_count():
        raise ValueError(
            f"{data_shards(model.mesh)} data shards (mesh.data x mesh.fsdp) do not divide into {jax.process_count()}"
            " hosts: a tensor axis must stay within a host"
        )
    ladders = pipeline.ladders(config.data, reader, prompts)
    rows = mixture(config.stages, number, config.data, config.seed)
    wording = template(config.data.template)
    rows = pipeline.usable(rows, reader, wording, config.data, ladders, with_answer=gold)
    _refuse_other_rows(rows.fingerprint())
    _say(f"stage {config.stages[number].name}: {rows.size} rows of {len(rows.parts)} files")
    for reason, count in rows.left_out.items():
        _say(f"  {count} rows left out: {reason}")
    for error in rows.errors:
        _say(f"  {error}")
    return rows, ladders


def example_batches(
    config: Config,
    reader: processor.Processor,
    model: Model,
    rows: Mixture,
    ladders: pipeline.Ladders,
    start: int,
) -> Iterator[list[Example]]:
    """This host's examples of the steps behind `start`."""
    wording, gold = template(config.data.template), config.method is Method.SFT
    hosts, host = jax.process_count(), jax.process_index()
    source = pipeline.Pipeline(
        rows, reader, wording, config.data, ladders, seed=config.seed, host=host, hosts=hosts, with_answer=gold
    )
    return source.batches(start)


def refuse_unscorable(rows: Mixture, config: Config, pool: MathsPool | None) -> None:
    """Refuses rows that no reward can score.

    Raises:
        ValueError: naming each by file and line.
    """
    placed = [(part.file, int(index)) for part in rows.parts for index in part.indices]
    asked = [file[index] for file, index in placed]
    wheres = {id(row): file.where(index) for row, (file, index) in zip(asked, placed, strict=True)}
    if errors := check_rows(asked, config.rewards, pool=pool):
        shown = "\n  ".join(f"{wheres[id(error.row)]}: {error}" for error in errors[:20])
        raise ValueError(f"{len(errors)} rows cannot be scored:\n  {shown}")


def start_state(
    config: Config,
    number: int,
    model: Model,
    optimizer: Any,
    before: Path | None,
    checkpoints: Checkpoints,
    place: dict[str, Any],
) -> tuple[TrainState, int, bool]:
    """The newest checkpoint of the stage, its step, and whether the stage was ended there; or what it starts with.

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
        return TrainState(items["params"], items["optimizer"]), step, bool(saved["ended"])
    state = init_state(model, optimizer, start_params(config, number, model, before))
    if before and config.stages[number].moments is Handover.KEEP:
        kept = _last_of(config, number - 1, before, {"optimizer": abstract.optimizer})["optimizer"]
        layouts = jax.tree.map(lambda x: x.sharding, abstract.optimizer)
        state = dataclasses.replace(state, optimizer=jax.device_put(moments_for_a_new_stage(kept), layouts))
    return state, 0, False


def start_params(config: Config, number: int, model: Model, before: Path | None) -> Parameters:
    """The parameters that a stage starts with, fp32: the last ones of the stage before it, if there is one."""
    if before:
        return _last_of(config, number - 1, before, {"params": model.abstract(jnp.float32)})["params"]
    if config.model.init is Init.RANDOM:
        return model.init(config.seed)
    return _loaded(config.model.path, model, config.seed)


def reference_params(config: Config, number: int, model: Model, before: Path | None) -> Parameters:
    """Of the frozen reference, fp32."""
    if config.grpo.reference is Reference.STAGE:
        return start_params(config, number, model, before)
    if config.grpo.reference_path:
        return _loaded(config.grpo.reference_path, model, config.seed)
    return start_params(config, 0, model, None)


def _loaded(path: str, model: Model, seed: int) -> Parameters:
    """A model's parameters, fp32, for the policy's computation.

    Raises:
        ValueError: the model is of another architecture than the policy.
    """
    found, plain = hf.load(path, mesh=model.mesh, dtype=model.dtype, param_dtype=jnp.float32)
    theirs, ours = (dataclasses.asdict(it.config) | {"dtype": ""} for it in (found, model))
    if differing := [name for name in ours if theirs[name] != ours[name]]:
        raise ValueError(
            f"{path} has another {', '.join(differing)} than model.path: the reference must be a model of the same"
            " architecture"
        )
    return add_adapters(model, plain, seed) if model.adapters else plain


def _last_of(config: Config, number: int, where: Path, items: dict[str, Any]) -> dict[str, Any]:
    """Items of a finished stage's last checkpoint."""
    last = config.stages[number].steps
    with Checkpoints(where / CHECKPOINTS, 1) as checkpoints:
        found = checkpoints.restore(items)
    if not found or not (found[0] == last or found[2]["ended"]):
        raise ValueError(
            f"{where / CHECKPOINTS} does not hold step {last}, which stage {config.stages[number + 1].name} goes on"
            f" from: remove {where / EXPORT}, and the same command trains the rest of that stage again"
        )
    return found[1]


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        sys.exit(f"train: {argv[1]} is no setting; write --config.NAME=VALUE")
    if _CONFIG.value is None:
        sys.exit("train: --config is missing; configs/ has some, such as --config=configs/sft.py")
    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = _CONFIG.value
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells at length what it does
    try:
        done = run(config, Path(_WORKDIR.value or f"runs/{config.name}"))
    except _REFUSALS as error:
        logging.debug("where it was raised", exc_info=True)
        sys.exit(f"train: {error}")
    if done is None:
        sys.exit(distributed.REQUEUE)
    _say(f"done: {done}")


def _refuse_other_rows(fingerprint: str) -> None:
    """Raises on every host if one has other rows."""
    own = np.frombuffer(bytes.fromhex(fingerprint), np.uint8)
    if jax.process_count() > 1 and np.ptp(multihost_utils.process_allgather(own), axis=0).any():
        raise ValueError("the hosts have different rows: give all of them the same files, and see what each left out")


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": state.optimizer}


def _shows(step: int, steps: int, every: int) -> bool:
    """Whether a step's completions are written: the first and the last one's, and those of steps behind checkpoints.

    The policy that drew these is the one that was saved, so that they can be drawn again.
    """
    return bool(every) and (step == steps or _due(every, step - 1))


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _say(text: str) -> None:
    if distributed.is_main():
        print(f"train: {text}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
