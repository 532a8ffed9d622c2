"""Where the time of a GRPO step goes, and what it gains by reading each prompt once for its whole group.

  python -m benchmarks.grpo_step [--size 2m 40m] [--out grpo_step.json]

Random weights, image prompts, bf16, completions of one length, KL on. Medians of several runs, after a warm-up:

  sample     images, prompts and decoding; `prefix` of it is the time to the first token
  score      reading and rewarding the completions, on the host
  reference  log-probs of the frozen reference
  update     gradients and the optimizer's move
  unshared   reference and update with every prompt read once for each of its completions
  compiled   programs compiled after the warm-up
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import currreft_jax as cr
from benchmarks.rollout import SIZES, add_shape, image_of, prompt_of, write_checkpoint
from currreft_jax.config import CacheType, Grpo, Kind, LossAverage, Optimizer, Precision, Sampling, Task
from currreft_jax.data.packing import BatchShape, collate, slots_needed, slots_of
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
    model, params = cr.load_model(folder / "model", dtype="bfloat16", param_dtype="float32")
    reader = cr.load_processor(folder / "model")
    reader.eos_token_ids = (-1,)  # nothing ends early
    prompts = [prompt_of(reader, image_of(folder / f"{i}.png", i, *options.image), i) for i in range(options.prompts)]
    rows = [Row(f"r{i}", Task.MATH, Kind.OPEN, "?", "7") for i in range(options.prompts)]
    settings = Sampling(
        options.group,
        options.tokens,
        segment=options.tokens,
        ladder=(),
        precision=Precision.BFLOAT16,
        cache=CacheType.BFLOAT16,
    )
    grpo, optimizer = Grpo(), Optimizer(learning_rate=1e-6)
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(model.dtype), tree))
    policy = cast(params)
    reference = jax.tree.map(jnp.copy, policy)
    update = make_update(
        model, make_optimizer(optimizer, 100), optimizer, partial(grpo_gradient, settings=grpo, temperature=1.0)
    )
    state = init_state(model, make_optimizer(optimizer, 100), params)
    warm_up(model, policy, reader, prompts, settings)
    batch = cr.to_devices(_batch(prompts, model), model.mesh)
    alone = cr.to_devices(_batch([it for it in prompts for _ in range(options.group)], model), model.mesh)
    flat = (options.prompts * options.group, 1, options.tokens)

    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def step(seed: int) -> None:
        nonlocal state
        weights = decode_params(model, policy, settings)
        one = replace(settings, max_new_tokens=1)
        timed("prefix", lambda: sample(model, policy, reader, batch, one, weights=weights, seed=seed))
        rollout = timed("sample", lambda: sample(model, policy, reader, batch, settings, weights=weights, seed=seed))
        held = timed("reference", lambda: token_logprobs(model, reference, batch, rollout.tokens, temperature=1.0))
        tokens = rollout.tokens.reshape(flat)
        timed("unshared reference", lambda: token_logprobs(model, reference, alone, tokens, temperature=1.0))
        timed("score", lambda: score_completions(rows, completions(reader, rollout)[0]).total)
        mask = np.asarray(rollout.mask)
        weights = loss_weights(mask, LossAverage.SEQUENCE, loss_counts([mask]))
        rewards = np.random.default_rng(seed).random(mask.shape[:2])
        sampled = Sampled(group_advantages(rewards).astype(np.float32), rollout.logprobs, held)
        shared = (GroupBatch(batch, rollout.tokens, rollout.mask), weights, sampled)
        each = jax.tree.map(lambda x: x.reshape(flat if x.ndim == 3 else flat[:2]), (weights, sampled))
        state, _ = timed("update", lambda: update(state, [[shared]]))
        repeated = (GroupBatch(alone, tokens, mask.reshape(flat)), *each)
        state, _ = timed("unshared update", lambda: update(state, [[repeated]]))

    step(0)
    seconds.clear()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **_: compiled.append(event) if "backend_compile" in event else None
    )
    for seed in range(1, options.repeats + 1):
        step(seed)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "size": size,
        "parameters": model.num_parameters,
        "prompt_tokens": len(prompts[0].tokens),
        "prompts": options.prompts,
        "group": options.group,
        "new_tokens": options.tokens,
        "seconds": medians,
        "compiled_after_warm_up": len(compiled),
    }


def _batch(prompts: list[Prompt], model: Any) -> PromptBatch:
    vision = model.config.vision
    reach = max(slots_of(picture, vision) for prompt in prompts for picture in prompt.pictures)
    shape = BatchShape(len(prompts[0].tokens), slots_needed(prompts, vision), reach)
    return collate(prompts, model.config, shape)


def _table(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    whole = sum(seconds[name] for name in ("sample", "score", "reference", "update"))
    learning = seconds["reference"] + seconds["update"]
    unshared = seconds["unshared reference"] + seconds["unshared update"]
    lines = [
        f"{result['size']}: {result['parameters']:,} parameters; {result['prompts']} prompts of"
        f" {result['prompt_tokens']} tokens x {result['group']} completions of {result['new_tokens']} tokens",
        f"  step {whole:.3f} s",
        *(f"  {name:20}{seconds[name]:8.3f} s" for name in ("prefix", "sample", "score", "reference", "update")),
        f"  reference and update with unshared prompts {unshared:.3f} s: x {unshared / learning:.2f}",
        f"  compiled after the warm-up: {result['compiled_after_warm_up']}",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which medians are shown (default %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the results there, as JSON")
    return parser


if __name__ == "__main__":
    main()
