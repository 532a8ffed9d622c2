"""Generates the golden files with torch and transformers: `make golden`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from currreft_jax.models import hf
from tests import tiny
from tests.golden.files import CONFIGS, EVERY, INPUTS, path_of, prompts_of, write_folder
from tests.oracle import reference


def make(name: str) -> None:
    config = CONFIGS[name]
    rng = np.random.default_rng(len(name))
    golden = {"config": np.array(json.dumps(config.to_hf()))}
    for weight, tensor in hf.hub_tensors(tiny.parameters_of(tiny.model_of(config), seed=len(name))):
        golden[f"weight:{weight}"] = tensor.astype(ml_dtypes.bfloat16).view(np.uint16)
    for row, (_, sizes) in enumerate(INPUTS):
        for i, (width, height) in enumerate(sizes):
            golden[f"image:{row}:{i}"] = rng.integers(0, 256, (height, width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoint"
        write_folder(golden, folder)
        exact, rounded = reference.open_model(folder), reference.open_model(folder, torch.bfloat16)
        for row, prompt in enumerate(prompts_of(golden, folder)):
            pixels = reference.pixel_values(prompt)
            answer = reference.answer(exact, prompt, pixels)
            golden[f"tokens:{row}"] = prompt.tokens
            golden[f"positions:{row}"] = answer.positions.astype(np.int32)
            golden[f"next_position:{row}"] = np.int32(answer.next_position)
            golden[f"states:{row}"] = np.stack(answer.states)[:, ::EVERY]
            golden[f"logits:{row}"] = answer.logits[::EVERY]
            golden[f"bf16_error:{row}"] = np.abs(reference.answer(rounded, prompt, pixels).logits - answer.logits)[
                ::EVERY
            ]
            if prompt.images:
                golden[f"blocks:{row}"] = np.stack(answer.blocks)[:, ::EVERY]
                golden[f"features:{row}"] = answer.features[::EVERY]
    golden["made_with"] = np.array(f"torch {torch.__version__}, transformers {reference.TRANSFORMERS}")
    np.savez_compressed(path_of(name), **golden)
    print(f"{path_of(name)}: {path_of(name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    for name in CONFIGS:
        make(name)
