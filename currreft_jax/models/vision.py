"""The vision tower on packed slots: no gather, no loop over windows, one compiled block.

The host packs whole attention windows into slots, and an image into consecutive ones (`data.packing`). A window block
is dense attention inside each slot. A full block is dense attention inside rows of `reach` slots, and with both
neighbours where an image crosses, since none is longer than a row; both are masked by equality of ids.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import Remat
from currreft_jax.models.attention import Source, attend
from currreft_jax.models.config import PIXEL_MEAN, PIXEL_STD, VisionConfig
from currreft_jax.models.layers import RESIDUAL, GatedMLP, Linear, RMSNorm, einsum, rematerialised, stacked, unstacked
from currreft_jax.models.rope import rotate, vision_angles
from currreft_jax.runtime.sharding import BATCH, constrain
from currreft_jax.structs import PADDING, Pictures

NORM_EPS = 1e-6  # fixed in the published model's code


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 `[..., channels, y, x]` to the fp32 values that the tower was trained on."""
    scaled = pixels.astype(jnp.float32) * np.float32(1 / 255)
    mean, std = (np.array(statistic, np.float32)[:, None, None] for statistic in (PIXEL_MEAN, PIXEL_STD))
    return (scaled - mean) / std


class PatchEmbed(nnx.Module):
    """The patch projection, for uint8 patches of still images."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        inputs = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        # A patch's pixels are much alike and one step of Adam moves their sum far: a larger kernel turns less.
        self.proj = Linear(inputs, (config.hidden_size,), bias=False, gain=4.0, rngs=rngs)

    def __call__(self, patches: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """uint8 `[..., channels * patch²] -> [..., E]`, normalised and projected in fp32.

        A still image fills both frames of a patch alike, so one product with the sum of the two frames' kernels is the
        whole convolution.
        """
        kernel = jnp.sum(self.proj.kernel[...].astype(jnp.float32), axis=1)
        pixels = normalise(patches.reshape(*patches.shape[:-1], *kernel.shape[:-1]))
        return einsum("nscijk,ijke->nsce", pixels, kernel).astype(dtype)


class VisionAttention(nnx.Module):
    """Attention among the patches of a window, or of an image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        size, heads, head = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = Linear((size,), (3, heads, head), bias=True, rngs=rngs)
        self.proj = Linear((heads, head), (size,), bias=True, gain=RESIDUAL, rngs=rngs)

    def __call__(
        self, x: jax.Array, angles: jax.Array, full: jax.Array, pictures: Pictures, shared: jax.Array
    ) -> jax.Array:
        """`[N, S, C, E] -> [N, S, C, E]`.

        Args:
            x: patches.
            angles: `[N, S, C, head / 2]`.
            full: bool scalar: attend within the image instead of the window.
            pictures: tells patches of one window, and of one image, apart.
            shared: of `rows_that_share`.
        """
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        query, key = rotate(query, angles, jnp.float32), rotate(key, angles, jnp.float32)

        def in_image(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return attend_in_images(query, key, value, jnp.asarray(pictures.image), pictures.reach, shared)

        def in_window(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            window = jnp.asarray(pictures.window)
            same = window[..., :, None] == window[..., None, :]
            return attend("nwqhd", query, Source("nwshd", key, value, "nwqs", same))

        return self.proj(jax.lax.cond(full, in_image, in_window, query, key, value))


def rows_that_share(image: jax.Array, reach: int) -> jax.Array:
    """Which rows of `reach` slots hold a part of an image whose rest lies in a neighbouring row, on any shard.

    Args:
        image: int `[N, S, C]`, the image of each patch; a slot holds patches of one.
        reach: slots of a row.

    Returns:
        bool `[rows]`.
    """
    of_slot = jnp.max(image, axis=2)
    before, after = of_slot[:, reach - 1 : -1 : reach], of_slot[:, reach::reach]
    crossed = jnp.any((before == after) & (after != PADDING), axis=0)
    return jnp.pad(crossed, (1, 0)) | jnp.pad(crossed, (0, 1))


def attend_in_images(
    query: jax.Array, key: jax.Array, value: jax.Array, image: jax.Array, reach: int, shared: jax.Array
) -> jax.Array:
    """Attention among the patches of each image, row by row of `reach` slots.

    An image reaches into one neighbouring row at most. A row that shares an image with a neighbour, on any shard, looks
    at three rows of keys, any other one at its own:

        slots   | a a a b | b b c c | d . . . |
        row 1             | . . . . |           looks at rows 0, 1 and 2
        row 2                       | . . . . | looks at row 2

    One row's scores exist at a time, forward and backward.

    Args:
        query: `[N, S, C, heads, head]`.
        key: likewise.
        value: likewise.
        image: int `[N, S, C]`, the image of each patch; -1 for padding.
        reach: slots of a row.
        shared: of `rows_that_share`.

    Returns:
        An array like `query`.
    """
    shards, slots, patches = image.shape
    reach = min(reach, slots)
    count = -(-slots // reach)

    def rows(x: jax.Array, fill: int = 0) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, count * reach - slots)) + ((0, 0),) * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(padded.reshape(shards, count, reach * patches, *x.shape[3:]), 1, 0)

    def attended(query: jax.Array, ids: jax.Array, key: jax.Array, value: jax.Array, key_ids: jax.Array) -> jax.Array:
        same = ids[:, :, None] == key_ids[:, None, :]
        return attend("nqhd", query, Source("nshd", key, value, "nqs", same))

    def neighbours(x: jax.Array, fill: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        around = jnp.pad(x, ((1, 1),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)
        return around[:-2], x, around[2:]

    @jax.checkpoint
    def row(inputs: tuple[Any, ...]) -> jax.Array:
        shared, query, *seen = inputs

        def three() -> jax.Array:
            return attended(query, seen[-1][1], *(jnp.concatenate(it, axis=1) for it in seen))

        def one() -> jax.Array:
            return attended(query, seen[-1][1], *(own for _, own, _ in seen))

        return jax.lax.cond(shared, three, one) if count > 1 else one()

    seen = neighbours(rows(key)), neighbours(rows(value)), neighbours(rows(image, PADDING), PADDING)
    mapped = jax.lax.map(row, (shared, rows(query), *seen))
    return jnp.moveaxis(mapped, 0, 1).reshape(shards, count * reach, *query.shape[2:])[:, :slots]


class VisionBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.attn = VisionAttention(config, rngs=rngs)
        self.norm2 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)

    def __call__(
        self, x: jax.Array, angles: jax.Array, full: jax.Array, pictures: Pictures, shared: jax.Array
    ) -> jax.Array:
        """`[N, S, C, E] -> [N, S, C, E]`."""
        x += self.attn(self.norm1(x), angles, full, pictures, shared)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Makes each unit of 2 x 2 patches one token of the decoder's size."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        wide = config.unit * config.hidden_size
        self.ln_q = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.mlp_0 = Linear((wide,), (wide,), bias=True, rngs=rngs)
        self.mlp_2 = Linear((wide,), (config.out_hidden_size,), bias=True, rngs=rngs)
        self.wide = wide

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, S, C, E] -> [N, S, C / unit, D]`."""
        x = self.ln_q(x)
        x = x.reshape(*x.shape[:2], -1, self.wide)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Packed patches in, one feature per merged unit out."""

    def __init__(self, config: VisionConfig, *, mesh: Mesh, remat: Remat, rngs: nnx.Rngs):
        self.config = config
        self.mesh = mesh
        self.remat = remat
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.blocks = stacked(VisionBlock, config.depth, config, rngs=rngs)
        self.merger = PatchMerger(config, rngs=rngs)

    def __call__(self, pictures: Pictures, dtype: jnp.dtype) -> jax.Array:
        """Features of all merged units of a shard, in packed order: `[N, S * C / unit, D]`.

        The slots of a shard are split over `tensor` too: the tower has no tensor-parallel products.
        """

        def at_home(x: jax.Array) -> jax.Array:
            return constrain(x, self.mesh, BATCH, "tensor")

        pictures = jax.tree.map(at_home, pictures)
        angles = vision_angles(pictures.coordinates, self.config.head_dim)
        one, blocks = unstacked(self.blocks)
        shared = rows_that_share(jnp.asarray(pictures.image), pictures.reach)
        full = jnp.isin(jnp.arange(self.config.depth), jnp.array(self.config.fullatt_block_indexes))

        def block(x: jax.Array, layer: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, None]:
            parameters, is_full = layer
            return at_home(one(parameters)(x, angles, is_full, pictures, shared)), None

        x = at_home(self.patch_embed(pictures.patches, dtype))
        x, _ = jax.lax.scan(rematerialised(block, self.remat), x, (blocks, full))
        features = at_home(self.merger(x))
        return constrain(features.reshape(features.shape[0], -1, features.shape[-1]), self.mesh, BATCH)
