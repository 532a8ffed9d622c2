"""Where the time of a GRPO step goes, and what it gains by reading each prompt once for its whole group.

  python -m benchmarks.grpo_step [--size 2m 40m 3b] [--trl-python PYTHON] [--out grpo_step.json]

Random weights, image prompts, bf16, completions of one length, KL on. Medians of several runs, after a warm-up:

  sample     images, prompts and decoding; `prefix` of it is the time to the first token
  score      reading and rewarding the completions, on the host
  reference  log-probs of the frozen reference
  update     gradients and the optimizer's move
  unshared   reference and update with every prompt read once for each of its completions
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
from benchmarks.rollout import SIZES, Peer, add_shape, image_of, prompt_of, write_checkpoint, write_job
from currreft_jax.config import Grpo, Kind, LossAverage, Optimizer, Remat, Sampling, Task
from currreft_jax.data.packing import BatchShape, collate, image_slots, slots_per_shard
from currreft_jax.experience import completions
from currreft_jax.losses import group_advantages, loss_counts, loss_weights
from currreft_jax.models.qwen2_5_vl import token_logprobs
from currreft_jax.rewards import score_completions
from currreft_jax.rollout import decode_params, sample, warm_up
from currreft_jax.step import grpo_gradient, init_state, make_optimizer, make_update
from currreft_jax.structs import GroupBatch, Prompt, PromptBatch, Row, Sampled


def main() -> None:
    """Run the benchmark."""
    options = _parser().parse_args()
    results = []
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(size, Path(folder), options))
        print(_table(results[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def measure(size: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model."""
    write_checkpoint(folder / "model", SIZES[size])
    ours = Ours(folder, options)
    ours.step(0)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **_: compiled.append(event) if "backend_compile" in event else None
    )
    peer = Peer("trl", options.trl_python, folder) if options.trl_python else None
    theirs: list[float] = []
    ours.seconds.clear()
    for seed in range(1, options.repeats + 1):
        ours.step(seed)
        if peer:
            theirs.append(peer()[0])
    programs, peaks = len(compiled), {"ours": _peak(os.getpid())}
    if peer:
        peaks["trl"] = _peak(peer.process.pid)
        peer.close()
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
        "trl": statistics.median(theirs) if theirs else None,
        "peak_bytes": peaks,
        "compiled_after_warm_up": programs,
    }


class Ours:
    """Our step, and what it needs; `seconds` and `unshared` hold what its parts took."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        model, params = cr.load_model(folder / "model", dtype="bfloat16", param_dtype="float32")
        self.model = replace(model, remat=Remat(options.remat))
        self.reader = cr.load_processor(folder / "model")
        self.reader.eos_token_ids = (-1,)  # nothing ends early
        images = [image_of(folder / f"{i}.png", i, *options.image) for i in range(options.prompts)]
        self.prompts = [prompt_of(self.reader, image, i) for i, image in enumerate(images)]
        self.rows = [Row(f"r{i}", Task.MATH, Kind.OPEN, "?", "7") for i in range(options.prompts)]
        self.settings = Sampling(options.group, options.tokens, segment=options.tokens, ladder=())
        write_job(folder, self.reader, self.prompts, images, self.settings)
        cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(self.model.dtype), tree))
        self.policy = cast(params)
        self.reference = jax.tree.map(jnp.copy, self.policy)
        rule = Optimizer(learning_rate=1e-6)
        optimizer = make_optimizer(rule, 100)
        gradient = partial(grpo_gradient, settings=Grpo(), temperature=1.0)
        self.update = make_update(self.model, optimizer, rule, gradient)
        self.state = init_state(self.model, optimizer, params)
        warm_up(self.model, self.policy, self.reader, self.prompts, self.settings)
        self.batch = cr.to_devices(_batch(self.prompts, self.model), self.model.mesh)
        each = [it for it in self.prompts for _ in range(options.group)]
        self.alone = cr.to_devices(_batch(each, self.model), self.model.mesh)
        self.seconds: dict[str, list[float]] = {}
        self.unshared: dict[str, list[float]] = {}

    def step(self, seed: int, *, shared: bool = True) -> None:
        """One step with the prompts shared by their groups, or with each read once for every completion."""
        seconds = self.seconds if shared else self.unshared

        def timed(name: str, run: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            result = jax.block_until_ready(run())
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            return result

        weights = decode_params(self.model, self.policy, self.settings)
        drawn = partial(sample, self.model, self.policy, self.reader, self.batch, weights=weights, seed=seed)
        if shared:
            timed("prefix", lambda: drawn(replace(self.settings, max_new_tokens=1)))
        rollout = timed("sample", lambda: drawn(self.settings))
        batch, tokens, mask = self.batch, rollout.tokens, np.asarray(rollout.mask)
        rewards = np.random.default_rng(seed).random(mask.shape[:2])
        learnt = loss_weights(mask, LossAverage.SEQUENCE, loss_counts([mask]))
        sampled = Sampled(group_advantages(rewards).astype(np.float32), rollout.logprobs, rollout.logprobs)
        if not shared:
            flat = (mask.shape[0] * mask.shape[1], 1, mask.shape[2])
            batch, tokens, mask = self.alone, tokens.reshape(flat), mask.reshape(flat)
            learnt, sampled = jax.tree.map(lambda x: x.reshape(flat if x.ndim == 3 else flat[:2]), (learnt, sampled))
        held = timed("reference", lambda: token_logprobs(self.model, self.reference, batch, tokens, temperature=1.0))
        timed("score", lambda: score_completions(self.rows, completions(self.reader, rollout)[0]).total)
        part = (GroupBatch(batch, tokens), learnt, replace(sampled, reference=held))
        self.state, _ = timed("update", lambda: self.update(self.state, [[part]]))


def _peak(process: int) -> int:
    """Bytes of resident memory that a process has had at most (Linux)."""
    (line,) = [it for it in Path(f"/proc/{process}/status").read_text().splitlines() if it.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def _batch(prompts: list[Prompt], model: Any) -> PromptBatch:
    vision = model.config.vision
    reach = max(image_slots(picture, vision) for prompt in prompts for picture in prompt.images)
    shape = BatchShape(len(prompts[0].tokens), slots_per_shard(prompts, vision), reach)
    return collate(prompts, model.config, shape)


def _table(result: dict[str, Any]) -> str:
    seconds, unshared = result["seconds"], result["unshared"]
    whole = sum(seconds[name] for name in ("sample", "score", "reference", "update"))
    shared, alone = (it["reference"] + it["update"] for it in (seconds, unshared))
    peaks = {name: value / 2**30 for name, value in result["peak_bytes"].items()}
    lines = [
        f"{result['size']}: {result['parameters']:,} parameters; {result['prompts']} prompts of"
        f" {result['prompt_tokens']} tokens x {result['group']} completions of {result['new_tokens']} tokens",
        f"  step {whole:.3f} s, peak {peaks['ours']:.2f} GiB",
        *(f"  {name:20}{seconds[name]:8.3f} s" for name in ("prefix", "sample", "score", "reference", "update")),
        f"  reference and update with unshared prompts {alone:.3f} s: x {alone / shared:.2f}",
        f"  compiled after the warm-up: {result['compiled_after_warm_up']}",
    ]
    if result["trl"]:
        lines.append(f"  TRL's step {result['trl']:.3f} s: x {result['trl'] / whole:.2f}, peak {peaks['trl']:.2f} GiB")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--trl-python", metavar="PYTHON", help="of an environment with torch and TRL 1")
    remat = [policy.value for policy in Remat]
    parser.add_argument("--remat", choices=remat, default="block", help="what ours recomputes (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which medians are shown (default %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the results there, as JSON")
    return parser


if __name__ == "__main__":
    main()
