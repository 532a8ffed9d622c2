"""The vision tower on packed rows: no gather, no loop over windows, one compiled block.

The host packs whole attention windows into slots and whole images into rows (`data.packing`), so that a window block is
dense attention inside each slot and a full block is dense attention inside each row, both masked by equality of ids.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from currreft_jax.config import Remat
from currreft_jax.models.attention import Source, attend
from currreft_jax.models.config import VisionConfig
from currreft_jax.models.layers import GatedMLP, Linear, RMSNorm, einsum, rematerialised, stacked
from currreft_jax.models.rope import rotate, vision_angles
from currreft_jax.sharding import BATCH, constrain
from currreft_jax.structs import Pictures

NORM_EPS = 1e-6  # fixed in the published model's code
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 `[..., channels, y, x]` to the fp32 values that the tower was trained on."""
    scaled = pixels.astype(jnp.float32) * np.float32(1 / 255)
    return (scaled - PIXEL_MEAN[:, None, None]) / PIXEL_STD[:, None, None]


class PatchEmbed(nnx.Module):
    """The patch projection, for uint8 patches of still images."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        inputs = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = Linear(inputs, (config.hidden_size,), bias=False, rngs=rngs)

    def __call__(self, patches: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """uint8 `[..., channels * patch²] -> [..., E]`, normalised and projected in fp32.

        A still image fills both frames of a patch alike, so one product with the sum of the two frames' kernels is the
        whole convolution.
        """
        kernel = jnp.sum(self.proj.kernel[...].astype(jnp.float32), axis=1)
        pixels = normalise(patches.reshape(*patches.shape[:-1], *kernel.shape[:-1]))
        return einsum("nrwcijk,ijke->nrwce", pixels, kernel).astype(dtype)


class VisionAttention(nnx.Module):
    """Attention among the patches of a window, or of an image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        size, heads, head = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = Linear((size,), (3, heads, head), bias=True, rngs=rngs)
        self.proj = Linear((heads, head), (size,), bias=True, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array, full: jax.Array, pictures: Pictures) -> jax.Array:
        """`[N, R, S, C, E] -> [N, R, S, C, E]`.

        Args:
            x: patches.
            angles: `[N, R, S, C, head / 2]`.
            full: bool scalar: attend within the image instead of the window.
            pictures: tells patches of one window, and of one image, apart.
        """
        query, key, value = jnp.moveaxis(self.qkv(x), -3, 0)
        query, key = rotate(query, angles, jnp.float32), rotate(key, angles, jnp.float32)

        def within(ids: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            same = ids[..., :, None] == ids[..., None, :]
            return attend("nrwqhd", query, Source("nrwshd", key, value, "nrwqs", same))

        def in_image(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            one_slot = [a.reshape(*a.shape[:2], 1, -1, *a.shape[4:]) for a in (pictures.image, query, key, value)]
            return within(*one_slot).reshape(query.shape)

        def in_window(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return within(pictures.window, query, key, value)

        return self.proj(jax.lax.cond(full, in_image, in_window, query, key, value))


class VisionBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.attn = VisionAttention(config, rngs=rngs)
        self.norm2 = RMSNorm(config.hidden_size, NORM_EPS, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)

    def __call__(self, x: jax.Array, angles: jax.Array, full: jax.Array, pictures: Pictures) -> jax.Array:
        """`[N, R, S, C, E] -> [N, R, S, C, E]`."""
        x += self.attn(self.norm1(x), angles, full, pictures)
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
        """`[N, R, S, C, E] -> [N, R, S, C / unit, D]`."""
        x = self.ln_q(x)
        x = x.reshape(*x.shape[:3], -1, self.wide)
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
        """Features of all merged units of a shard, in packed order: `[N, R * S * C / unit, D]`.

        The rows of a shard are split over `tensor` as well: the tower has no tensor-parallel products.
        """
        pictures = jax.tree.map(lambda x: constrain(x, self.mesh, BATCH, "tensor"), pictures)
        angles = vision_angles(pictures.coordinates, self.config.head_dim)
        graphdef, blocks = nnx.split(self.blocks)
        full = np.isin(np.arange(self.config.depth), self.config.fullatt_block_indexes)

        def block(x: jax.Array, layer: tuple[nnx.State, jax.Array]) -> tuple[jax.Array, None]:
            parameters, is_full = layer
            return nnx.merge(graphdef, parameters)(x, angles, is_full, pictures), None

        x = self.patch_embed(pictures.patches, dtype)
        x, _ = jax.lax.scan(rematerialised(block, self.remat), x, (blocks, full))
        features = self.merger(x)
        return constrain(features.reshape(features.shape[0], -1, features.shape[-1]), self.mesh, BATCH)
