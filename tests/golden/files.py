"""Golden files: a configuration, weights under their published names, inputs and the oracle's outputs.

Weights are stored as bf16 bits, and outputs of every few tokens only, to keep all files together under 3 MB.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from currreft_jax.data.processor import load as load_processor
from currreft_jax.structs import Prompt
from tests import tiny

FOLDER = Path(__file__).parent
EVERY = 5  # one of so many tokens, patches and units is stored

SMALL = replace(
    tiny.CONFIG,
    hidden_size=64,
    intermediate_size=72,
    num_attention_heads=4,
    num_key_value_heads=2,
    vision=replace(
        tiny.CONFIG.vision,
        depth=4,
        hidden_size=36,
        intermediate_size=30,
        num_heads=3,
        out_hidden_size=64,
        fullatt_block_indexes=(1, 3),
    ),
)
CONFIGS = {
    "tied": SMALL,
    "untied": replace(
        SMALL, tie_word_embeddings=False, num_attention_heads=8, num_key_value_heads=2, mrope_section=(1, 1, 2)
    ),
}
INPUTS = (
    ("window edges cut in both directions", ((154, 98),)),
    ("two of different sizes", ((28, 28), (84, 252))),
    ("text only, in the same batch", ()),
)


def path_of(name: str) -> Path:
    return FOLDER / f"qwen2_5_vl_{name}.npz"


def images_of(golden: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    return [[golden[f"image:{row}:{i}"] for i in range(len(sizes))] for row, (_, sizes) in enumerate(INPUTS)]


def write_folder(golden: dict[str, np.ndarray], folder: Path) -> None:
    """Writes the checkpoint of a golden file as a Hugging Face folder."""
    folder.mkdir()
    weights = {
        name.removeprefix("weight:"): bits.view(ml_dtypes.bfloat16).astype(np.float32)
        for name, bits in golden.items()
        if name.startswith("weight:")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(json.loads(str(golden["config"]))))
    tiny.write_tokenizer(folder)


def prompts_of(golden: dict[str, np.ndarray], folder: Path) -> list[Prompt]:
    processor = load_processor(folder)
    return [
        processor.prompt(tiny.user(text, len(images)), [tiny.as_image(image) for image in images])
        for (text, _), images in zip(INPUTS, images_of(golden), strict=True)
    ]
