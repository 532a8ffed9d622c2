"""Measures the sampler's speed against the memory roofline, Hugging Face's `generate` and vLLM.

  python -m benchmarks.rollout [--size 2m 40m 3b] [--hf-python PYTHON] [--vllm-python PYTHON] [--out rollout.json]

Random weights, image prompts, bf16, completions of equal length: only speed is measured. Peers run in their own
environments, given by their Python, on the same weights and prompts; all engines alternate, and medians are shown.

  tokens/s     sampled tokens per second of the whole call: images, prefill and decoding
  decode       sampled tokens per second of decoding alone
  roofline     achieved fraction of the memory bandwidth in a decoding step that reads the weights once, each prompt's
               KV cache once per group, and each completion's own KV cache
  prefix       prefill seconds with each prompt encoded once, and once per completion
  waste        fraction of prompt slots, and of completion slots, that are padding
  compiled     programs compiled after the warm-up
"""

import argparse
import json
import platform
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

import currreft_jax as cr
from benchmarks.workload import (
    SIZES,
    PeerProcess,
    add_shape_arguments,
    decode_bytes_per_step,
    image_prompt,
    log_compilations,
    write_checkpoint,
    write_image,
    write_job,
)
from currreft_jax.config import Sampling
from currreft_jax.config.output import output_path
from currreft_jax.data.packing import smallest_bucket
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.sampling.abstract import warm_up
from currreft_jax.sampling.sampler import decode_params, sample
from currreft_jax.structs import Prompt


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    results = []
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(size, Path(folder), options))
        print(_format(results[-1]), flush=True)
    if options.out:
        machine = {"processor": platform.processor(), "device": str(jax.devices()[0]), "jax": jax.__version__}
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n", "utf-8")


def measure(size: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one model size."""
    write_checkpoint(folder / "model", SIZES[size])
    model, parameters = cr.load_model(folder / "model", dtype="bfloat16")
    processor = cr.load_processor(folder / "model")
    processor.eos_token_ids = (-1,)  # no completion ends early
    images = [write_image(folder / f"{i}.png", i, *options.image) for i in range(options.prompts)]
    prompts = [image_prompt(processor, image, key) for key, image in enumerate(images)]
    settings = Sampling(options.group, options.tokens, segment=options.segment, ladder=())
    weights = decode_params(model, parameters, settings)
    write_job(folder, processor, prompts, images, settings)

    def ours(seed: int) -> int:
        return int(jnp.sum(sample(model, parameters, processor, prompts, settings, weights=weights, seed=seed).lengths))

    warm_up(model, parameters, processor, prompts, settings)
    ours(0)  # compiles the sum above
    seconds, tokens, num_compiled = _alternate(ours, folder, options)
    prefix, unshared = _prefix_seconds(model, parameters, processor, prompts, settings, weights, options.repeats)
    decoding = statistics.median(seconds["ours"]) - prefix
    step = decoding / (options.tokens - 1)
    bytes_per_step, bandwidth = decode_bytes_per_step(model, weights, prompts, settings), _bandwidth()
    length = smallest_bucket(len(prompts[0].tokens), settings.prompt_lengths, "prompt_lengths")
    return {
        "size": size,
        "parameters": model.num_parameters,
        "prompts": options.prompts,
        "prompt_tokens": len(prompts[0].tokens),
        "group": options.group,
        "new_tokens": options.tokens,
        "tokens_per_second": {name: tokens[name] / statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "decode_tokens_per_second": tokens["ours"] / decoding,
        "step_ms": 1e3 * step,
        "bytes_per_step": bytes_per_step,
        "bandwidth": bandwidth,
        "roofline": bytes_per_step / bandwidth / step,
        "prefix_seconds": prefix,
        "unshared_prefix_seconds": unshared,
        "waste": {
            "prompt": 1 - len(prompts[0].tokens) / length,
            "completion": 1 - options.tokens / (-(-options.tokens // options.segment) * options.segment),
        },
        "compiled_after_warm_up": num_compiled,
    }


def _alternate(
    ours: Callable[[int], int], folder: Path, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int], int]:
    """Runs our sampler and the peers in turns.

    Returns:
        The seconds of each engine's runs, its sampled tokens per run, and the programs that were compiled meanwhile.
    """
    pythons = {"hf": options.hf_python, "vllm": options.vllm_python}
    peers = {name: PeerProcess(name, python, folder) for name, python in pythons.items() if python}
    compilations = log_compilations()
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    tokens: dict[str, int] = {}
    for seed in range(options.repeats):
        elapsed, tokens["ours"] = _timed(partial(ours, seed))
        seconds["ours"].append(elapsed)
        for name, peer in peers.items():
            elapsed, tokens[name] = peer()
            seconds[name].append(elapsed)
    num_compiled = len(compilations)
    for peer in peers.values():
        peer.close()
    return seconds, tokens, num_compiled


def _timed(run: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    tokens = run()
    return time.perf_counter() - start, tokens


def _prefix_seconds(
    model: Model, parameters: Any, processor: Any, prompts: list[Prompt], settings: Sampling, weights: Any, repeats: int
) -> tuple[float, float]:
    """Measures the seconds to the first token, with each prompt encoded once, and once per completion."""
    one = replace(settings, max_new_tokens=1)
    shared = _seconds(lambda: sample(model, parameters, processor, prompts, one, weights=weights), repeats)
    repeated = [prompt for prompt in prompts for _ in range(settings.group_size)]
    single = replace(one, group_size=1)
    return shared, _seconds(lambda: sample(model, parameters, processor, repeated, single, weights=weights), repeats)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds, after one run that compiles."""
    jax.block_until_ready(run())
    return statistics.median(_timed(lambda: jax.block_until_ready(run()) and 0)[0] for _ in range(repeats))


def _bandwidth() -> float:
    """Measures memory bandwidth in bytes/s: the best of several reductions over a GiB."""
    x = jnp.ones(2**28, jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(x))
    return x.nbytes / min(_timed(lambda: jax.block_until_ready(total(x)) is None)[0] for _ in range(5))


def _format(result: dict[str, Any]) -> str:
    rates = result["tokens_per_second"]
    lines = [
        f"{result['size']}: {result['parameters']:,} parameters; {result['prompts']} prompts of"
        f" {result['prompt_tokens']} tokens x {result['group']} completions of {result['new_tokens']} tokens",
        *(f"  {name:6} {rate:10,.0f} tokens/s   ours x {rates['ours'] / rate:.2f}" for name, rate in rates.items()),
        f"  decode {result['decode_tokens_per_second']:10,.0f} tokens/s, {result['step_ms']:.2f} ms a step,"
        f" {result['bytes_per_step'] / 1e6:.1f} MB of {result['bandwidth'] / 1e9:.1f} GB/s:"
        f" {result['roofline']:.0%} of the roofline",
        f"  prefix {result['prefix_seconds']:.3f} s, unshared {result['unshared_prefix_seconds']:.3f} s:"
        f" x {result['unshared_prefix_seconds'] / result['prefix_seconds']:.2f} at G = {result['group']}",
        "  waste  " + ", ".join(f"{name} {fraction:.1%}" for name, fraction in result["waste"].items()),
        f"  compiled after the warm-up: {result['compiled_after_warm_up']}",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--segment", type=int, default=128, metavar="S", help="slots of a cache segment (default 128)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs per engine (default 5)")
    parser.add_argument("--hf-python", metavar="PYTHON", help="Python of an environment with torch and transformers 5")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="Python of an environment with vLLM")
    parser.add_argument("--out", type=output_path, metavar="FILE", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    main()
