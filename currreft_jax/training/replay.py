"""Replays a completion of a run: the policy that sampled it samples it again, alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from currreft_jax.config import Config, Init
from currreft_jax.data.examples import make_example
from currreft_jax.data.fields import Fields
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import load_template
from currreft_jax.data.rows import parse_row
from currreft_jax.models import hf
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.workdir import CHECKPOINTS, EXPORT, read_config, saved_steps
from currreft_jax.sampling.sampler import replay
from currreft_jax.session.session import load_config_processor
from currreft_jax.session.sources import load_checkpoint


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A completion as recorded, and as sampled again.

    Attributes:
        recorded: texts of the recorded tokens.
        replayed: texts of the tokens sampled now.
        text: text of the replayed completion.
        logp_difference: the largest difference of their log-probs, in nats; infinite where tokens differ.
    """

    recorded: tuple[str, ...]
    replayed: tuple[str, ...]
    text: str
    logp_difference: float

    @property
    def mismatch(self) -> str:
        """Describes the first token that differs; empty if none does."""
        pairs = enumerate(zip_longest(self.recorded, self.replayed), 1)
        different = (f"token {n} is {new!r}, and in the file {old!r}" for n, (old, new) in pairs if old != new)
        return next(different, "")


def replay_completion(location: str) -> ReplayResult:
    """Samples one completion of a run again.

    Args:
        location: FILE:LINE:G, with FILE a run's `rollouts/STEP.jsonl`, and G the completion of that line's group; both
            count from 1.

    Raises:
        ValueError: there is no such completion, or the policy that sampled it was not kept.
        OSError: a file that cannot be read.
    """
    path, line, g = _parse_location(location)
    where, stage_dir = f"{path}:{line}", path.parent.parent
    fields = Fields.from_json(_read_line(path, line), where)
    row = parse_row(fields, image_root=path.parent)
    key = fields.take("key", int, "the number that seeded the completions; this run was made without it")
    completions = fields.take("completions", list, "the completions")
    if not 1 <= g <= len(completions):
        raise ValueError(f"{where} has completions 1 to {len(completions)}, not {g}")
    record = Fields(completions[g - 1], f"{where}: completion {g}")

    config = read_config(stage_dir)
    names = [stage.name for stage in config.stages]
    if len(names) > 1 and stage_dir.name not in names:
        raise ValueError(f"{stage_dir} is not the folder of one of its run's stages, {', '.join(names)}")
    stage_index = names.index(stage_dir.name) if len(names) > 1 else 0
    step = int(path.stem.partition("-")[0])
    processor = load_config_processor(config.model)
    model, policy = _policy_before(config, stage_index, step, stage_dir, processor)
    prompt_template = load_template(config.data.template)
    prompt = dataclasses.replace(make_example(row, processor, prompt_template, location=where).prompt, key=key)
    sampling = dataclasses.replace(config.sampling, mesh=(-1, 1))
    rollout = replay(model, policy, processor, prompt, g - 1, sampling, seed=config.seed, stage=stage_index, step=step)
    length = int(np.asarray(rollout.lengths)[0, 0])
    tokens, logprobs = np.asarray(rollout.tokens)[0, 0, :length], np.asarray(rollout.logprobs)[0, 0, :length]
    recorded = record.texts("tokens", "a list of strings")
    replayed = tuple(processor.decode([token]) for token in tokens)
    difference = np.inf
    if recorded == replayed:
        difference = np.abs(logprobs - np.array(record.take("logprobs", list, "numbers"))).max()
    return ReplayResult(recorded, replayed, processor.decode(tokens), float(difference))


def _policy_before(
    config: Config, stage_index: int, step: int, stage_dir: Path, processor: Processor
) -> tuple[Model, Parameters]:
    """Loads the policy that sampled the completions of a step, in the model's precision."""
    mesh = make_mesh(fsdp=-1)
    if step == 1:
        if stage_index == 0 and config.model.init is Init.RANDOM:
            raise ValueError("the run started from random parameters, which are in no file")
        previous = stage_dir.parent / config.stages[stage_index - 1].name / EXPORT
        source = previous if stage_index else config.model.path
        model, params = hf.load(source, mesh=mesh, dtype=config.model.dtype)
        return dataclasses.replace(model, attention=config.model.attention), params
    steps = saved_steps(stage_dir)
    if step - 1 not in steps:
        raise ValueError(
            f"step {step} was sampled by the policy after step {step - 1}, and {stage_dir / CHECKPOINTS} has {steps}:"
            " step 1 and the step after each checkpoint can be replayed; logging.save_every and keep_last set which"
        )
    return load_checkpoint(config.model, stage_dir / CHECKPOINTS / str(step - 1), processor, mesh)


def _parse_location(location: str) -> tuple[Path, int, int]:
    path, line, g = ["", "", *location.rsplit(":", 2)][-3:]
    if not (path and line.isdecimal() and g.isdecimal() and Path(path).stem.partition("-")[0].isdecimal()):
        raise ValueError(f"{location!r} is no FILE:LINE:G, such as runs/demo/stage1/rollouts/1.jsonl:3:5")
    return Path(path).absolute(), int(line), int(g)


def _read_line(path: Path, number: int) -> bytes:
    lines = path.read_bytes().splitlines()
    if not 1 <= number <= len(lines):
        raise ValueError(f"{path} has lines 1 to {len(lines)}, not {number}")
    return lines[number - 1]
