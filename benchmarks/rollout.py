"""Measures the sampler's speed against the memory roofline, Hugging Face's `generate` and vLLM.

  python benchmarks/rollout.py [--size 2m 40m 3b] [--hf-python PYTHON] [--vllm-python PYTHON] [--out rollout.json]

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
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import currreft_jax as cr
from currreft_jax.config import Sampling
from currreft_jax.data.packing import smallest_bucket
from currreft_jax.data.processor import CHAT_TEMPLATE, read_preprocessor_config
from currreft_jax.models import hf
from currreft_jax.models.config import PUBLISHED, ModelConfig, VisionConfig
from currreft_jax.models.folder import write_json
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.models.vision import normalize_pixels
from currreft_jax.sampling.sampler import decode_params, sample, warm_up
from currreft_jax.structs import Prompt

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
_2M = ModelConfig(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=4096,
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(4, 6, 6),
    max_position_embeddings=4096,
    max_window_layers=6,
    bos_token_id=256,
    eos_token_id=258,
    vision_start_token_id=259,
    vision_end_token_id=260,
    vision_token_id=261,
    image_token_id=262,
    video_token_id=263,
    vision=VisionConfig(
        depth=2,
        hidden_size=96,
        intermediate_size=192,
        num_heads=4,
        out_hidden_size=128,
        fullatt_block_indexes=(1,),
        tokens_per_second=2,
    ),
)
SIZES = {
    "2m": _2M,
    "40m": replace(
        _2M,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        vocab_size=8192,
        mrope_section=(8, 12, 12),
        vision=replace(_2M.vision, depth=4, hidden_size=128, out_hidden_size=512),
    ),
    # The published shape, with the token ids of this file's tokenizer; needs a GPU.
    "3b": replace(
        PUBLISHED["3b"],
        **{name: value for name, value in asdict(_2M).items() if name.endswith("_token_id")},
    ),
}


QUESTION = "What stands on the left of the largest thing?"


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
    bytes_per_step, bandwidth = _bytes_per_step(model, weights, prompts, settings), _bandwidth()
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
    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
    )
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


def _bytes_per_step(model: Model, weights: Any, prompts: list[Prompt], settings: Sampling) -> float:
    """Returns the mean bytes a decoding step must read: weights, each prompt's KV cache once, each completion's own."""
    config, width = model.config, jnp.dtype(settings.cache.value).itemsize
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    completions = len(prompts) * settings.group_size * (settings.max_new_tokens - 1) / 2
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return weight_bytes + per_token * (sum(len(prompt.tokens) for prompt in prompts) + completions)


def _bandwidth() -> float:
    """Measures memory bandwidth in bytes/s: the best of several reductions over a GiB."""
    x = jnp.ones(2**28, jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(x))
    return x.nbytes / min(_timed(lambda: jax.block_until_ready(total(x)) is None)[0] for _ in range(5))


class PeerProcess:
    """Runs another engine in a process of its own, idle between runs."""

    def __init__(self, name: str, python: str, folder: Path):
        script = Path(__file__).with_name("peers.py")
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(script), name, str(folder / "model"), str(folder / "job.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._read_line("ready")

    def __call__(self) -> tuple[float, int]:
        """Runs once; returns seconds and sampled tokens."""
        print(file=self.process.stdin, flush=True)
        answer = json.loads(self._read_line('{"seconds"'))
        return answer["seconds"], answer["tokens"]

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _read_line(self, prefix: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(prefix):
                return line
        raise RuntimeError(f"{self.name} exited without an answer:\n{self.log.read_text()[-3000:]}")


def write_job(folder: Path, processor: Any, prompts: list[Prompt], images: list[Path], settings: Sampling) -> None:
    """Writes the prompts for the peers: arrays for Hugging Face, text and images for vLLM and TRL."""
    images_in_prompts = [image for prompt in prompts for image in prompt.images]
    patches = np.concatenate([image.patches for image in images_in_prompts]).reshape(-1, 3, 14, 14)
    pixels = np.repeat(np.asarray(normalize_pixels(jnp.asarray(patches)))[:, :, None], 2, axis=2).reshape(
        len(patches), -1
    )
    np.savez(
        folder / "arrays.npz",
        tokens=np.stack([prompt.tokens for prompt in prompts]),
        pixel_values=pixels,
        grids=np.array([[1, *image.grid] for image in images_in_prompts]),
    )
    image_token_id = processor.config.image_token_id
    texts = []
    for prompt in prompts:
        repeated = (prompt.tokens == image_token_id) & (np.roll(prompt.tokens, 1) == image_token_id)
        texts.append(processor.tokenizer.decode(prompt.tokens[~repeated].tolist()))
    job = {
        "arrays": str(folder / "arrays.npz"),
        "texts": texts,
        "images": [str(image) for image in images],
        "question": QUESTION,
        "group": settings.group_size,
        "tokens": settings.max_new_tokens,
        "longest": len(prompts[0].tokens) + settings.max_new_tokens + 8,
    }
    (folder / "job.json").write_text(json.dumps(job), "utf-8")


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """Writes random weights in Hugging Face's layout, with a byte tokenizer."""
    folder.mkdir()
    model = Model(config, cr.make_mesh(devices=jax.devices()[:1]), jnp.dtype("float32"))
    hf.save(model, model.init(0), folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([f"~{i}~" for i in range(len(alphabet) + len(SPECIAL), config.vocab_size)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    write_json(folder / "preprocessor_config.json", read_preprocessor_config(folder, config))


def image_prompt(processor: Any, image: Path, key: int) -> Prompt:
    """Builds a prompt with a question about one image."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return processor.prompt([{"role": "user", "content": content}], [image], key=key)


def write_image(path: Path, seed: int, width: int, height: int) -> Path:
    """Writes an image of noise, and returns its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


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


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the model size and the workload."""
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["2m", "40m"], help="model sizes")
    parser.add_argument("--prompts", type=int, default=4, metavar="P", help="prompts, each with one image (default 4)")
    parser.add_argument("--group", type=int, default=8, metavar="G", help="completions per prompt (default 8)")
    parser.add_argument("--tokens", type=int, default=128, metavar="T", help="tokens per completion (default 128)")
    parser.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=(896, 448),
        metavar=("W", "H"),
        help="pixels (default 896 448: 512 tokens)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser)
    parser.add_argument("--segment", type=int, default=128, metavar="S", help="slots of a cache segment (default 128)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs per engine (default 5)")
    parser.add_argument("--hf-python", metavar="PYTHON", help="Python of an environment with torch and transformers 5")
    parser.add_argument("--vllm-python", metavar="PYTHON", help="Python of an environment with vLLM")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    main()
