"""Our hidden states layer by layer, in the order of a prompt's tokens and patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from currreft_jax.data.packing import PADDING, BatchShape, collate, image_slots, slots_per_shard
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.models.rope import vision_angles
from currreft_jax.models.vision import rows_sharing_images
from currreft_jax.structs import Prompt, PromptBatch


def _layer(stacked: nnx.State, index: int) -> nnx.State:
    return jax.tree.map(lambda x: x[index], stacked)


def decoder_states(model: Model, parameters, batch: PromptBatch) -> list[np.ndarray]:
    """Hidden states as Hugging Face lists them: embeddings, all layers but the last, final norm; `[P, L, D]` each."""
    module = model.bind(parameters)
    graphdef, layers = nnx.split(module.layers)
    angles = module._prompt_angles(batch)
    run = jax.jit(lambda layer, x: nnx.merge(graphdef, layer).prefill(x, angles)[0])
    x = jax.jit(lambda parameters, batch: model.bind(parameters).embed_prompts(batch))(parameters, batch)
    states = [x]
    for index in range(model.config.num_hidden_layers):
        states.append(run(_layer(layers, index), states[-1]))
    return [np.asarray(state, np.float32) for state in [*states[:-1], module.norm(states[-1])]]


def vision_states(model: Model, parameters, batch: PromptBatch) -> list[np.ndarray]:
    """Hidden states after each vision block, `[N * S * C, E]` each."""
    module = model.bind(parameters).visual
    config = model.config.vision
    graphdef, blocks = nnx.split(module.blocks)
    angles = vision_angles(batch.images.coordinates, config.head_dim)
    shared_rows = rows_sharing_images(jnp.asarray(batch.images.image_id), batch.images.max_slots_per_image)
    run = jax.jit(lambda block, x, is_full: nnx.merge(graphdef, block)(x, angles, is_full, batch.images, shared_rows))
    x = module.patch_embed(batch.images.patches, model.dtype)
    states = []
    for index in range(config.depth):
        x = run(_layer(blocks, index), x, index in config.fullatt_block_indexes)
        states.append(np.asarray(x, np.float32).reshape(-1, config.hidden_size))
    return states


def features(model: Model, parameters, batch: PromptBatch) -> np.ndarray:
    """Features of the merged units, `[N * S * units, D]`."""
    compute = jax.jit(lambda parameters, images: model.bind(parameters).visual(images, model.dtype))
    return np.asarray(compute(parameters, batch.images), np.float32).reshape(-1, model.config.hidden_size)


def patches_of(batch: PromptBatch, row: int, config: ModelConfig) -> np.ndarray:
    """Indices of a prompt's patches among all packed patches, in the order of its images."""
    units = units_of(batch, row)
    return (units[:, None] * config.vision.patches_per_unit + np.arange(config.vision.patches_per_unit)).reshape(-1)


def units_of(batch: PromptBatch, row: int) -> np.ndarray:
    index = np.asarray(batch.embed_index)[row]
    return index[index != PADDING]


def one_batch(prompts: list[Prompt], config: ModelConfig) -> PromptBatch:
    length = max(len(prompt.tokens) for prompt in prompts)
    max_slots = max(image_slots(image, config.vision) for prompt in prompts for image in prompt.images)
    return collate(prompts, config, BatchShape(length, slots_per_shard(prompts, config.vision), max_slots))
