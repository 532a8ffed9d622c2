"""The vision tower on packed slots: no gather, no loop over windows, one compiled block.

The host packs whole attention windows into slots, and each image into consecutive slots (`data.packing`). A window
block is dense attention within a slot. A full block is dense attention within a row of `max_slots_per_image` slots; an
image that crosses into the next row adds both neighbours of a row to its keys. Masks are equality of ids.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import AttentionKernel, Remat
from currreft_jax.models.attention import KVSource, attend
from currreft_jax.models.config import PIXEL_MEAN, PIXEL_STD, VisionConfig
from currreft_jax.models.flash import FlashAttention, Sequences
from currreft_jax.models.layers import (
    RESIDUAL_INIT_SCALE,
    GatedMLP,
    Layer,
    Linear,
    RMSNorm,
    apply_remat,
    einsum,
    split_stack,
    stack_layers,
)
from currreft_jax.models.rope import apply_rope, vision_angles
from currreft_jax.runtime.sharding import BATCH, constrain, gathered
from currreft_jax.structs import PADDING, PackedImages

NORM_EPS = 1e-6  # hard-coded in the published model


def normalize_pixels(pixels: jax.Array) -> jax.Array:
    """Normalises uint8 pixels `[..., channels, y, x]` to fp32 with the published mean and standard deviation."""
    scaled = pixels.astype(jnp.float32) * np.float32(1 / 255)
    mean, std = (np.array(statistic, np.float32)[:, None, None] for statistic in (PIXEL_MEAN, PIXEL_STD))
    return (scaled - mean) / std


class PatchEmbed(nnx.Module):
    """The patch projection, for uint8 patches of still images."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        inputs = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        # The pixels of a patch are highly correlated, so one step of Adam changes the output a lot: a larger kernel
        # changes relatively less.
        self.proj = Linear(inputs, (config.hidden_size,), bias=False, init_scale=4.0, rngs=rngs)

    def __call__(self, patches: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Normalises and projects uint8 patches `[..., channels * patch²]` in fp32; returns `[..., E]` in `dtype`.

        Both frames of a still image's patch are equal, so the convolution is one matmul with the sum of the two
        frames' kernels.
        """
        kernel = jnp.sum(self.proj.kernel[...].astype(jnp.float32), axis=1)
        pixels = normalize_pixels(patches.reshape(*patches.shape[:-1], *kernel.shape[:-1]))
        return einsum("nscijk,ijke->nsce", pixels, kernel).astype(dtype)


class VisionAttention(nnx.Module):
    """Attention within windows, or within images."""

    def __init__(self, config: VisionConfig, mesh: Mesh, kernel: AttentionKernel, *, rngs: nnx.Rngs):
        self.rows = FlashAttention(kernel, mesh, "queries", causal=False)
        size, heads, head = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = Linear((size,), (3, heads, head), bias=True, rngs=rngs)
        self.proj = Linear((heads, head), (size,), bias=True, init_scale=RESIDUAL_INIT_SCALE, rngs=rngs)

    def __call__(
        self, x: jax.Array, angles: jax.Array, is_full: jax.Array, images: PackedImages, shared_rows: jax.Array
    ) -> jax.Array:
        """Attends within windows or images, `[N, S, C, E] -> [N, S, C, E]`.

        Args:
            x: patches.
            angles: fp32 `[N, S, C, head / 2]`.
            is_full: bool scalar, true for attention within images, false within windows.
            images: window and image ids of the patches.
            shared_rows: bool `[rows]`, from `rows_sharing_images`.
        """
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        query, key = apply_rope(query, angles, jnp.float32), apply_rope(key, angles, jnp.float32)

        def in_image(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            image_id = jnp.asarray(images.image_id)
            return attend_in_images(query, key, value, image_id, images.max_slots_per_image, shared_rows, self.rows)

        def in_window(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            window_id = jnp.asarray(images.window_id)
            mask = window_id[..., :, None] == window_id[..., None, :]
            return attend("nwqhd", query, KVSource("nwshd", key, value, "nwqs", mask), mesh=self.rows.mesh)

        return self.proj(jax.lax.cond(is_full, in_image, in_window, query, key, value))


def rows_sharing_images(image_id: jax.Array, row_slots: int) -> jax.Array:
    """Finds the rows that share an image with a neighbouring row, on any shard.

    Args:
        image_id: int `[N, S, C]`, image of each patch; all patches of a slot have the same.
        row_slots: slots of a row.

    Returns:
        bool `[rows]`.
    """
    slot_image = jnp.max(image_id, axis=2)
    row_end, next_start = slot_image[:, row_slots - 1 : -1 : row_slots], slot_image[:, row_slots::row_slots]
    crossed = jnp.any((row_end == next_start) & (next_start != PADDING), axis=0)
    return jnp.pad(crossed, (1, 0)) | jnp.pad(crossed, (0, 1))


def attend_same_id(
    query: jax.Array, ids: jax.Array, key: jax.Array, value: jax.Array, key_ids: jax.Array, flash: FlashAttention
) -> jax.Array:
    """Attends to the keys that have the query's id.

    Args:
        query: `[N, T, heads, head]`.
        ids: int `[N, T]`.
        key: `[N, S, heads, head]`.
        value: `[N, S, heads, head]`.
        key_ids: int `[N, S]`.
        flash: kernel, which may not take the shapes.

    Returns:
        `[N, T, heads, head]`.
    """
    q, k, v, q_ids, k_ids = (x[:, None] for x in (query[..., None, :], key, value, ids, key_ids))
    sequences = Sequences(q, k, v, query_ids=q_ids, key_ids=k_ids)
    if flash.takes(sequences):
        return flash(sequences)[:, 0, :, :, 0]
    mask = ids[:, :, None] == key_ids[:, None, :]
    return attend("nqhd", query, KVSource("nshd", key, value, "nqs", mask), mesh=flash.mesh)


def attend_in_images(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    image_id: jax.Array,
    row_slots: int,
    shared_rows: jax.Array,
    flash: FlashAttention,
) -> jax.Array:
    """Attends within each image, one row of slots at a time, forward and backward.

    An image is no longer than a row, so it crosses into one neighbour at most. A row that shares an image with a
    neighbour, on any shard, attends to the keys of three rows; any other row attends to its own:

        slots   | a a a b | b b c c | d . . . |
        row 1             | . . . . |           attends to rows 0, 1 and 2
        row 2                       | . . . . | attends to row 2

    Args:
        query: `[N, S, C, heads, head]`.
        key: `[N, S, C, heads, head]`.
        value: `[N, S, C, heads, head]`.
        image_id: int `[N, S, C]`, image of each patch; -1 for padding.
        row_slots: slots of a row.
        shared_rows: bool `[rows]`, from `rows_sharing_images`.
        flash: kernel of a row.

    Returns:
        `[N, S, C, heads, head]`.
    """
    num_shards, num_slots, patches = image_id.shape
    row_slots = min(row_slots, num_slots)
    num_rows = -(-num_slots // row_slots)

    def split_rows(x: jax.Array, fill: int = 0) -> jax.Array:
        """`[N, S, C, ...] -> [rows, N, row_slots * C, ...]`."""
        padding = ((0, 0), (0, num_rows * row_slots - num_slots)) + ((0, 0),) * (x.ndim - 2)
        padded = jnp.pad(x, padding, constant_values=fill)
        return jnp.moveaxis(padded.reshape(num_shards, num_rows, row_slots * patches, *x.shape[3:]), 1, 0)

    @jax.checkpoint
    def attend_row(inputs: tuple[Any, ...]) -> jax.Array:
        shared, query, *sources = inputs
        row_ids = sources[-1][1]

        def three_rows() -> jax.Array:
            return attend_same_id(query, row_ids, *(jnp.concatenate(rows, axis=1) for rows in sources), flash=flash)

        def own_row() -> jax.Array:
            return attend_same_id(query, row_ids, *(row for _, row, _ in sources), flash=flash)

        return jax.lax.cond(shared, three_rows, own_row) if num_rows > 1 else own_row()

    sources = (
        _with_neighbours(split_rows(key)),
        _with_neighbours(split_rows(value)),
        _with_neighbours(split_rows(image_id, PADDING), PADDING),
    )
    out = jax.lax.map(attend_row, (shared_rows, split_rows(query), *sources))
    return jnp.moveaxis(out, 0, 1).reshape(num_shards, num_rows * row_slots, *query.shape[2:])[:, :num_slots]


def _with_neighbours(rows: jax.Array, fill: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the previous row of each row, the rows themselves, and the next row of each."""
    padded = jnp.pad(rows, ((1, 1),) + ((0, 0),) * (rows.ndim - 1), constant_values=fill)
    return padded[:-2], rows, padded[2:]


class VisionBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig, mesh: Mesh, kernel: AttentionKernel, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.attn = VisionAttention(config, mesh, kernel, rngs=rngs)
        self.norm2 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)

    def __call__(
        self, x: jax.Array, angles: jax.Array, is_full: jax.Array, images: PackedImages, shared_rows: jax.Array
    ) -> jax.Array:
        """`[N, S, C, E] -> [N, S, C, E]`; arguments as for `VisionAttention`."""
        x += self.attn(self.norm1(x), angles, is_full, images, shared_rows)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Merges each unit of 2 x 2 patches into one token of the decoder's hidden size."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        unit_size = config.patches_per_unit * config.hidden_size
        self.ln_q = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.mlp_0 = Linear((unit_size,), (unit_size,), bias=True, rngs=rngs)
        self.mlp_2 = Linear((unit_size,), (config.out_hidden_size,), bias=True, rngs=rngs)
        self.unit_size = unit_size

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, S, C, E] -> [N, S, C / unit, D]`."""
        x = self.ln_q(x)
        x = x.reshape(*x.shape[:2], -1, self.unit_size)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Encodes packed images: patches in, one feature per merged unit out."""

    def __init__(self, config: VisionConfig, *, mesh: Mesh, remat: Remat, kernel: AttentionKernel, rngs: nnx.Rngs):
        self.config = config
        self.mesh = mesh
        self.remat = remat
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.blocks = stack_layers(VisionBlock, config.depth, config, mesh, kernel, rngs=rngs)
        self.merger = PatchMerger(config, rngs=rngs)

    def __call__(self, images: PackedImages, dtype: jnp.dtype) -> jax.Array:
        """Computes the features of all merged units in packed order, `[N, S * C / unit, D]`.

        Slots are sharded over `tensor` too, since the tower has no tensor-parallel matmuls.
        """

        def shard_slots(x: jax.Array) -> jax.Array:
            return constrain(x, self.mesh, BATCH, "tensor")

        def gathered_module(module: Layer, name: str) -> Layer:
            make_module, parameters = split_stack(module)
            return make_module(gathered(parameters, self.mesh, f"visual/{name}", dtype))

        images = jax.tree.map(shard_slots, images)
        angles = vision_angles(images.coordinates, self.config.head_dim)
        make_block, stack = split_stack(self.blocks)
        shared_rows = rows_sharing_images(jnp.asarray(images.image_id), images.max_slots_per_image)
        is_full = jnp.isin(jnp.arange(self.config.depth), jnp.array(self.config.fullatt_block_indexes))

        def block(x: jax.Array, inputs: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, None]:
            parameters, is_full = inputs
            vision_block = make_block(gathered(parameters, self.mesh, "visual/blocks", dtype))
            return shard_slots(vision_block(x, angles, is_full, images, shared_rows)), None

        x = shard_slots(gathered_module(self.patch_embed, "patch_embed")(images.patches, dtype))
        x, _ = jax.lax.scan(apply_remat(block, self.remat), x, (stack, is_full))
        features = shard_slots(gathered_module(self.merger, "merger")(x))
        return constrain(features.reshape(features.shape[0], -1, features.shape[-1]), self.mesh, BATCH)
