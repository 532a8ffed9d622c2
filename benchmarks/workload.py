"""Shared by the benchmarks: random models, prompts with one image each, the peers' processes, and counters."""

from __future__ import annotations

import argparse
import json
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import currreft_jax as cr
from currreft_jax.config import Sampling
from currreft_jax.data.packing import BatchShape, collate, image_slots, slots_per_shard
from currreft_jax.data.processor import CHAT_TEMPLATE, read_preprocessor_config
from currreft_jax.models import hf
from currreft_jax.models.config import PUBLISHED, ModelConfig, VisionConfig
from currreft_jax.models.folder import CONFIG, write_json
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.models.vision import normalize_pixels
from currreft_jax.structs import Completion, Prompt, PromptBatch, Reason, Row, Verdict

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
    "tiny": replace(_2M, num_hidden_layers=2, max_window_layers=2, vocab_size=512),
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


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """Writes random weights in Hugging Face's layout, with a byte tokenizer."""
    write_model_files(folder, config)
    model = Model(config, cr.make_mesh(devices=jax.devices()[:1]), jnp.dtype("float32"))
    hf.save(model, model.init(0), folder)


def write_model_files(folder: Path, config: ModelConfig) -> None:
    """Writes a new checkpoint folder without weights: architecture, byte tokenizer, preprocessor and chat template."""
    folder.mkdir()
    write_json(folder / CONFIG, config.to_hf())
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


def decode_bytes_per_step(model: Model, weights: Any, prompts: list[Prompt], settings: Sampling) -> float:
    """Returns the mean bytes a decoding step must read: weights, each prompt's KV cache once, each completion's own."""
    config, width = model.config, jnp.dtype(settings.cache.value).itemsize
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * width
    completions = len(prompts) * settings.group_size * (settings.max_new_tokens - 1) / 2
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return weight_bytes + per_token * (sum(len(prompt.tokens) for prompt in prompts) + completions)


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


def prompt_batch(prompts: Sequence[Prompt], config: ModelConfig) -> PromptBatch:
    """Collates prompts to the even length of the longest one, not to that of a bucket: kernels take no odd lengths."""
    vision = config.vision
    max_slots_per_image = max(image_slots(image, vision) for prompt in prompts for image in prompt.images)
    longest = max(len(prompt.tokens) for prompt in prompts)
    shape = BatchShape(longest + longest % 2, slots_per_shard(prompts, vision), max_slots_per_image)
    return collate(prompts, config, shape)


def hashed_reward(row: Row, completion: Completion, *_: Any) -> Verdict:
    """Returns a number in [0, 1) that depends on the text alone: rewards, and gradients, that are not all 0."""
    return Verdict(zlib.crc32(completion.text.encode()) / 2**32, Reason.UNREWARDED)


def log_compilations() -> list[float]:
    """Returns a list that receives the seconds of every compilation from here on."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds
