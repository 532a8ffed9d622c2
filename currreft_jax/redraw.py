"""A completion that a run has drawn and written, drawn again by the policy that drew it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from currreft_jax.checkpoint import restore_item
from currreft_jax.config import Config, Init
from currreft_jax.data import processor
from currreft_jax.data.examples import make_example
from currreft_jax.data.fields import Fields
from currreft_jax.data.prompts import load_template
from currreft_jax.data.rows import parse_row
from currreft_jax.models import hf
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.rollout import replay
from currreft_jax.sharding import make_mesh
from currreft_jax.step import caster, trained_model
from currreft_jax.workdir import CHECKPOINTS, EXPORT, read_config


@dataclass(frozen=True, slots=True)
class Redrawn:
    """A completion, then and now.

    Attributes:
        written: texts of the tokens that the file has.
        drawn: texts of the tokens that were drawn now.
        text: of the latter.
        logp_difference: the largest between the log-probs of both, in nats; infinite where tokens differ.
    """

    written: tuple[str, ...]
    drawn: tuple[str, ...]
    text: str
    logp_difference: float


def redraw(place: str) -> Redrawn:
    """Draws one completion again.

    Args:
        place: FILE:LINE:G, with FILE a run's `rollouts/STEP.jsonl`, and G the completion of that line's group; both
            count from 1.

    Raises:
        ValueError: there is no such completion, or the policy that drew it was not kept.
        OSError: a file that cannot be read.
    """
    path, line, g = _parsed(place)
    where, stage_folder = f"{path}:{line}", path.parent.parent
    fields = Fields.from_json(_line(path, line), where)
    row = parse_row(fields, image_root=path.parent)
    key = fields.take("key", int, "the number that seeded the completions; this run was made without it")
    said = fields.take("completions", list, "what was drawn")
    if not 1 <= g <= len(said):
        raise ValueError(f"{where} has completions 1 to {len(said)}, not {g}")
    written = Fields(said[g - 1], f"{where}: completion {g}")

    config = read_config(stage_folder)
    names = [stage.name for stage in config.stages]
    if len(names) > 1 and stage_folder.name not in names:
        raise ValueError(f"{stage_folder} is not the folder of one of its run's stages, {', '.join(names)}")
    number = names.index(stage_folder.name) if len(names) > 1 else 0
    step = int(path.stem.partition("-")[0])
    reader = processor.load(
        config.model.path, min_pixels=config.model.min_pixels or None, max_pixels=config.model.max_pixels or None
    )
    model, policy = _policy_before(config, number, step, stage_folder, reader)
    prompt = dataclasses.replace(
        make_example(row, reader, load_template(config.data.template), location=where).prompt, key=key
    )
    sampling = dataclasses.replace(config.sampling, mesh=(-1, 1))
    rollout = replay(model, policy, reader, prompt, g - 1, sampling, seed=config.seed, stage=number, step=step)
    length = int(np.asarray(rollout.lengths)[0, 0])
    tokens, logprobs = np.asarray(rollout.tokens)[0, 0, :length], np.asarray(rollout.logprobs)[0, 0, :length]
    before, now = written.texts("tokens", "a list of strings"), tuple(reader.decode([token]) for token in tokens)
    apart = np.abs(logprobs - np.array(written.take("logprobs", list, "numbers"))).max() if before == now else np.inf
    return Redrawn(before, now, reader.decode(tokens), float(apart))


def _policy_before(
    config: Config, number: int, step: int, folder: Path, reader: processor.Processor
) -> tuple[Model, Parameters]:
    """The policy that drew the completions of a step, in the model's precision, on this process's devices."""
    mesh = make_mesh(fsdp=-1)
    if step == 1:
        if number == 0 and config.model.init is Init.RANDOM:
            raise ValueError("the run started from random parameters, which are in no file")
        source = folder.parent / config.stages[number - 1].name / EXPORT if number else config.model.path
        return hf.load(source, mesh=mesh, dtype=config.model.dtype)
    checkpoints = folder / CHECKPOINTS
    kept = sorted(int(it.name) for it in checkpoints.glob("[0-9]*") if it.name.isdecimal())
    if step - 1 not in kept:
        raise ValueError(
            f"step {step} was drawn by the policy after step {step - 1}, and {checkpoints} has {kept}: completions of"
            " step 1 and of the steps behind these can be drawn again; logging.save_every and keep_last decide which"
        )
    model = trained_model(config.model, reader.config, mesh, reader.tokenizer_size)
    return model, caster(model)(restore_item(checkpoints / str(step - 1), "params", model.abstract(jnp.float32)))


def _parsed(place: str) -> tuple[Path, int, int]:
    path, line, g = ["", "", *place.rsplit(":", 2)][-3:]
    if not (path and line.isdecimal() and g.isdecimal() and Path(path).stem.partition("-")[0].isdecimal()):
        raise ValueError(f"{place!r} is no FILE:LINE:G, such as runs/demo/stage1/rollouts/1.jsonl:3:5")
    return Path(path).absolute(), int(line), int(g)


def _line(path: Path, number: int) -> bytes:
    lines = path.read_bytes().splitlines()
    if not 1 <= number <= len(lines):
        raise ValueError(f"{path} has lines 1 to {len(lines)}, not {number}")
    return lines[number - 1]
