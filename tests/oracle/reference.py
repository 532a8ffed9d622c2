"""Hugging Face's model as the oracle, guarded against its known errors.

transformers 5.3.0 to 5.5.3 compute a wrong time for still images, and 5.x uses one-dimensional positions unless it gets
`mm_token_type_ids`. Every call here therefore checks the oracle's positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from packaging.version import Version
from transformers import Qwen2_5_VLForConditionalGeneration

from currreft_jax.models.vision import normalize_pixels
from currreft_jax.structs import Prompt

TRANSFORMERS = Version(version("transformers"))
WRONG_POSITIONS = Version("5.3.0"), Version("5.5.3")

torch.set_num_threads(1)


@dataclass(frozen=True)
class Answer:
    """Outputs of Hugging Face's model for one prompt; `states` and `blocks` are lists over layers."""

    logits: np.ndarray  # [L, V]
    states: list[np.ndarray]  # embeddings, then each decoder layer but the last, then the final norm: [L, D]
    blocks: list[np.ndarray]  # each vision block, in merge-unit order: [patches, E]
    features: np.ndarray | None  # [units, D]
    positions: np.ndarray  # [3, L]
    next_position: int


def refuse_wrong_versions(found: Version) -> None:
    if WRONG_POSITIONS[0] <= found <= WRONG_POSITIONS[1]:
        raise RuntimeError(f"transformers {found} computes wrong positions of still images: not an oracle")


def open_model(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen2_5_VLForConditionalGeneration:
    refuse_wrong_versions(TRANSFORMERS)
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, torch_dtype=dtype).eval()


def tower(model: Qwen2_5_VLForConditionalGeneration) -> torch.nn.Module:
    return model.visual if Version("4.52") > TRANSFORMERS else model.model.visual


def inputs(model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, pixel_values: np.ndarray | None) -> dict:
    ids = torch.tensor(prompt.tokens[None].astype(np.int64))
    arguments = {"input_ids": ids}
    if prompt.images:
        arguments["pixel_values"] = torch.tensor(pixel_values)
        arguments["image_grid_thw"] = torch.tensor([[1, *image.grid] for image in prompt.images])
        if Version("5.0") <= TRANSFORMERS:
            arguments["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    return arguments


def pixel_values(prompt: Prompt) -> np.ndarray | None:
    """Pixel values in the format of Hugging Face's processor, two equal frames per patch, normalised by our code."""
    if not prompt.images:
        return None
    patches = np.concatenate([image.patches for image in prompt.images]).reshape(-1, 3, 14, 14)
    return np.repeat(np.asarray(normalize_pixels(jnp.asarray(patches)))[:, :, None], 2, axis=2).reshape(
        len(patches), -1
    )


def positions(model: Qwen2_5_VLForConditionalGeneration, arguments: dict) -> tuple[np.ndarray, int]:
    """The oracle's positions `[3, L]` and its next position."""
    wanted = {k: v for k, v in arguments.items() if k in ("input_ids", "image_grid_thw", "mm_token_type_ids")}
    owner = model if Version("4.52") > TRANSFORMERS else model.model
    if "image_grid_thw" not in wanted:
        length = arguments["input_ids"].shape[1]
        return np.tile(np.arange(length), (3, 1)), length
    found, delta = owner.get_rope_index(**wanted, attention_mask=torch.ones_like(arguments["input_ids"]))
    return found[:, 0].numpy(), arguments["input_ids"].shape[1] + int(delta[0, 0])


def check_positions(arguments: dict, image_token: int, found: np.ndarray) -> None:
    """Checks that text has equal positions on all axes and an image one time, which wrong versions and calls break."""
    ids = arguments["input_ids"][0].numpy()
    is_text = ids != image_token
    if not (found[:, is_text] == found[0, is_text]).all():
        raise RuntimeError("the oracle gives text different positions on the three axes")
    for start in np.flatnonzero((ids[1:] == image_token) & (ids[:-1] != image_token)) + 1:
        if (found[:, start] != found[0, start - 1] + 1).any() or found[0, start + 1] != found[0, start]:
            raise RuntimeError("the oracle does not place an image right after its text, at one time")


def answer(model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, pixel_values: np.ndarray | None = None) -> Answer:
    arguments = inputs(model, prompt, pixel_values)
    found, next_position = positions(model, arguments)
    check_positions(arguments, model.config.image_token_id, found)

    captured: dict[str, list[torch.Tensor]] = {"embedded": [], "entered": [], "left": [], "merged": []}
    visual = tower(model)
    first = visual.blocks[0]
    hooks = [
        visual.patch_embed.register_forward_hook(lambda module, args, out: captured["embedded"].append(out)),
        first.register_forward_pre_hook(lambda module, args: captured["entered"].append(args[0])),
        *(
            block.register_forward_hook(lambda module, args, out: captured["left"].append(out))
            for block in visual.blocks
        ),
        visual.merger.register_forward_hook(lambda module, args, out: captured["merged"].append(out)),
    ]
    (model if Version("4.52") > TRANSFORMERS else model.model).rope_deltas = None
    with torch.no_grad():
        out = model(**arguments, output_hidden_states=True)
    for hook in hooks:
        hook.remove()

    blocks, features = [], None
    if prompt.images:
        order = window_order(captured["embedded"][0], captured["entered"][0])
        unit = visual.spatial_merge_unit
        blocks = [block.float().numpy()[np.argsort(order)] for block in captured["left"]]
        features = captured["merged"][0].float().numpy()[np.argsort(order[::unit] // unit)]
    states = [state[0].float().numpy() for state in out.hidden_states]
    return Answer(out.logits[0].float().numpy(), states, blocks, features, found, next_position)


def window_order(embedded: torch.Tensor, entered: torch.Tensor) -> np.ndarray:
    """Index of the patch in each row of the first block's input: Hugging Face reorders patches by windows."""
    index = {row.tobytes(): i for i, row in enumerate(embedded.float().numpy())}
    return np.array([index[row.tobytes()] for row in entered.float().numpy()])
