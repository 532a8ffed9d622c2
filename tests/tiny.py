"""Small Qwen2.5-VL checkpoints whose weights make every error visible.

The default initialisation hides errors: with a standard deviation of 0.02 and zero biases, a missing bias changes a
logit by 1e-6. Here the standard deviation of kernels is 0.08, and biases and norms are random.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from currreft_jax.models import hf
from currreft_jax.models.config import PUBLISHED, ModelConfig
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.sharding import make_mesh

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IDS = {token: 256 + i for i, token in enumerate(SPECIAL)}

CONFIG = replace(
    PUBLISHED["3b"],
    hidden_size=96,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=270,
    mrope_section=(2, 3, 3),
    max_window_layers=3,
    dtype="float32",
    bos_token_id=IDS["<|endoftext|>"],
    eos_token_id=IDS["<|im_end|>"],
    vision_start_token_id=IDS["<|vision_start|>"],
    vision_end_token_id=IDS["<|vision_end|>"],
    vision_token_id=IDS["<|vision_pad|>"],
    image_token_id=IDS["<|image_pad|>"],
    video_token_id=IDS["<|video_pad|>"],
    vision=replace(
        PUBLISHED["3b"].vision,
        depth=5,
        hidden_size=60,
        intermediate_size=50,
        num_heads=3,
        out_hidden_size=96,
        fullatt_block_indexes=(1, 4),
    ),
)
TOKEN_FIELDS = tuple(field.name for field in fields(ModelConfig) if field.name.endswith("_token_id"))
UNTIED = replace(CONFIG, tie_word_embeddings=False, num_key_value_heads=3)


def model_of(config: ModelConfig = CONFIG, **settings) -> Model:
    settings = {"mesh": make_mesh(devices=jax.devices()[:1]), "dtype": jnp.dtype(config.dtype), **settings}
    return Model(config, **settings)


def parameters_of(model: Model, seed: int = 0, scale: float = 0.08) -> Parameters:
    rng = np.random.default_rng(seed)

    def random_leaf(path, leaf):
        name = path[-1].key
        if name in ("kernel", "embedding"):
            return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)
        return jnp.asarray((name == "scale") + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype)

    parameters = jax.tree_util.tree_map_with_path(random_leaf, model.abstract(jnp.dtype(model.config.dtype)))
    return jax.device_put(parameters, jax.tree.map(lambda x: x.sharding, model.abstract(jnp.float32)))


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(
    folder: Path, config: ModelConfig = CONFIG, seed: int = 0, scale: float = 0.08
) -> tuple[Model, Parameters]:
    folder.mkdir(parents=True)
    model = model_of(config)
    parameters = parameters_of(model, seed, scale)
    hf.save(model, parameters, folder)
    write_tokenizer(folder)
    return model, parameters


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def user(text: str, images: int = 0) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]
