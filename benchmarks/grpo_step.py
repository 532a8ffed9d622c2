"""Measures the phases of a GRPO step, and the gain from encoding each prompt once for its whole group.

  python -m benchmarks.grpo_step [--size 2m 40m 3b] [--trl-python PYTHON] [--out grpo_step.json]

Random weights, image prompts, bf16, completions of equal length, KL penalty on. Prints medians of several runs:

  sample     image encoding, prefill and decoding; `prefix` is its time to the first token
  score      detokenising and scoring the completions, on the host
  reference  log-probs of the frozen reference
  update     gradients and the optimizer's update
  unshared   reference and update with every prompt encoded once per completion
  compiled   programs compiled after the warm-up
  TRL        a whole step of its GRPOTrainer on the same weights and prompts, in turns with ours, in the environment of
             that Python; peaks are of each process's resident memory
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import currreft_jax as cr
from benchmarks.workload import (
    SIZES,
    PeerProcess,
    add_shape_arguments,
    image_prompt,
    log_compilations,
    prompt_batch,
    write_checkpoint,
    write_image,
    write_job,
)
from currreft_jax.config import Grpo, Kind, LossAverage, Optimizer, Remat, Sampling, Task
from currreft_jax.config.output import output_path
from currreft_jax.models.qwen2_5_vl import token_logprobs
from currreft_jax.rewards import score_completions
from currreft_jax.sampling.abstract import warm_up
from currreft_jax.sampling.completions import decode_completions
from currreft_jax.sampling.sampler import decode_params, sample
from currreft_jax.structs import GroupBatch, GrpoTargets, Row
from currreft_jax.training.gradients import grpo_gradient
from currreft_jax.training.losses import group_advantages, loss_counts, loss_weights
from currreft_jax.training.optimizer import make_optimizer
from currreft_jax.training.update import Microbatch, TrainState, init_state, loss_and_gradient, update_programs


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    results = []
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(size, Path(folder), options))
        print(_format(results[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def measure(size: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one model size."""
    write_checkpoint(folder / "model", SIZES[size])
    ours = OurStep(folder, options)
    ours.step(0)
    compilations = log_compilations()
    trl = PeerProcess("trl", options.trl_python, folder) if options.trl_python else None
    trl_seconds: list[float] = []
    ours.seconds.clear()
    for seed in range(1, options.repeats + 1):
        ours.step(seed)
        if trl:
            trl_seconds.append(trl()[0])
    num_compiled, peaks = len(compilations), {"ours": _peak_bytes(os.getpid())}
    if trl:
        peaks["trl"] = _peak_bytes(trl.process.pid)
        trl.close()
    ours.step(0, shared=False)
    ours.unshared.clear()
    for seed in range(1, options.repeats + 1):
        ours.step(seed, shared=False)
    return {
        "size": size,
        "parameters": ours.model.num_parameters,
        "prompt_tokens": len(ours.prompts[0].tokens),
        "prompts": options.prompts,
        "group": options.group,
        "new_tokens": options.tokens,
        "seconds": {name: statistics.median(times) for name, times in ours.seconds.items()},
        "unshared": {name: statistics.median(times) for name, times in ours.unshared.items()},
        "trl": statistics.median(trl_seconds) if trl_seconds else None,
        "peak_bytes": peaks,
        "compiled_after_warm_up": num_compiled,
    }


class OurStep:
    """Runs our GRPO step on fixed prompts; `seconds` and `unshared` collect the seconds of its phases."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        model, params = cr.load_model(folder / "model", dtype="bfloat16", param_dtype="float32")
        self.model = replace(model, remat=Remat(options.remat))
        self.processor = cr.load_processor(folder / "model")
        self.processor.eos_token_ids = (-1,)  # no completion ends early
        images = [write_image(folder / f"{i}.png", i, *options.image) for i in range(options.prompts)]
        self.prompts = [image_prompt(self.processor, image, i) for i, image in enumerate(images)]
        self.rows = [Row(f"r{i}", Task.MATH, Kind.OPEN, "?", "7") for i in range(options.prompts)]
        self.settings = Sampling(options.group, options.tokens, segment=options.tokens, ladder=())
        write_job(folder, self.processor, self.prompts, images, self.settings)
        cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(self.model.dtype), tree))
        self.policy = cast(params)
        self.reference = jax.tree.map(jnp.copy, self.policy)
        settings = Optimizer(learning_rate=1e-6)
        optimizer = make_optimizer(settings, 100)
        gradient = partial(grpo_gradient, settings=Grpo(), temperature=1.0)
        self.programs = update_programs(self.model, optimizer, settings, gradient)
        self.state = init_state(self.model, optimizer, params)
        warm_up(self.model, self.policy, self.processor, self.prompts, self.settings)
        self.batch = cr.to_devices(prompt_batch(self.prompts, self.model.config), self.model.mesh)
        repeated = [prompt for prompt in self.prompts for _ in range(options.group)]
        self.repeated_batch = cr.to_devices(prompt_batch(repeated, self.model.config), self.model.mesh)
        self.seconds: dict[str, list[float]] = {}
        self.unshared: dict[str, list[float]] = {}

    def step(self, seed: int, *, shared: bool = True) -> None:
        """Runs a step with each prompt encoded once per group, or once per completion."""
        seconds = self.seconds if shared else self.unshared

        def timed(name: str, run: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(run())
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            return result

        decode_weights = decode_params(self.model, self.policy, self.settings)
        sample_batch = partial(
            sample, self.model, self.policy, self.processor, self.batch, weights=decode_weights, seed=seed
        )
        if shared:
            timed("prefix", lambda: sample_batch(replace(self.settings, max_new_tokens=1)))
        rollout = timed("sample", lambda: sample_batch(self.settings))
        batch, tokens, mask = self.batch, rollout.tokens, np.asarray(rollout.mask)
        rewards = np.random.default_rng(seed).random(mask.shape[:2])
        weights = loss_weights(mask, LossAverage.SEQUENCE, loss_counts([mask]))
        targets = GrpoTargets(group_advantages(rewards).astype(np.float32), rollout.logprobs, rollout.logprobs)
        if not shared:
            flat = (mask.shape[0] * mask.shape[1], 1, mask.shape[2])
            batch, tokens, mask = self.repeated_batch, tokens.reshape(flat), mask.reshape(flat)
            weights, targets = jax.tree.map(lambda x: x.reshape(flat if x.ndim == 3 else flat[:2]), (weights, targets))
        reference = timed(
            "reference", lambda: token_logprobs(self.model, self.reference, batch, tokens, temperature=1.0)
        )
        timed("score", lambda: score_completions(self.rows, decode_completions(self.processor, rollout).texts).total)
        microbatch = (GroupBatch(batch, tokens), weights, replace(targets, ref_logprobs=reference))
        self.state = timed("update", lambda: self.update(microbatch))

    def update(self, microbatch: Microbatch) -> TrainState:
        """Returns the state after an update with one microbatch."""
        gradient, _ = loss_and_gradient(self.programs, self.state.params, [microbatch])
        return self.programs.apply_gradients(self.state, gradient)[0]


def _peak_bytes(pid: int) -> int:
    """Returns the peak resident memory of a process (Linux)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _format(result: dict[str, Any]) -> str:
    seconds, unshared = result["seconds"], result["unshared"]
    step = sum(seconds[name] for name in ("sample", "score", "reference", "update"))
    shared, repeated = (phases["reference"] + phases["update"] for phases in (seconds, unshared))
    peaks = {name: value / 2**30 for name, value in result["peak_bytes"].items()}
    lines = [
        f"{result['size']}: {result['parameters']:,} parameters; {result['prompts']} prompts of"
        f" {result['prompt_tokens']} tokens x {result['group']} completions of {result['new_tokens']} tokens",
        f"  step {step:.3f} s, peak {peaks['ours']:.2f} GiB",
        *(f"  {name:20}{seconds[name]:8.3f} s" for name in ("prefix", "sample", "score", "reference", "update")),
        f"  reference and update with unshared prompts {repeated:.3f} s: x {repeated / shared:.2f}",
        f"  compiled after the warm-up: {result['compiled_after_warm_up']}",
    ]
    if result["trl"]:
        lines.append(f"  TRL's step {result['trl']:.3f} s: x {result['trl'] / step:.2f}, peak {peaks['trl']:.2f} GiB")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--trl-python", metavar="PYTHON", help="Python of an environment with torch and TRL 1")
    policies = [policy.value for policy in Remat if policy is not Remat.AUTO]
    parser.add_argument("--remat", choices=policies, default="block", help="our remat policy (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs; medians are shown (default %(default)s)")
    parser.add_argument("--out", type=output_path, help="also write the results to this JSON file")
    return parser


if __name__ == "__main__":
    main()
