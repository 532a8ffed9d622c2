"""Products, norms and the gated MLP: what the decoder and the vision tower share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from currreft_jax.config import Remat

Layer = TypeVar("Layer", bound=nnx.Module)

PRODUCT = "product"
NEVER = float(jnp.finfo(jnp.float32).min)  # a score that leaves no weight


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product of two arrays in x's dtype, accumulated and returned in fp32.

    Products of fp32 are exact ones, where an accelerator's default would round the operands to TF32 or bf16.

    The backward pass casts the cotangent to x's dtype too, so that its products run at the same speed, and returns y's
    gradient in y's own dtype: an fp32 parameter receives an fp32 gradient from bf16 products.

    Args:
        equation: of the form `ab,bc->ac`; every axis stands in at least two of the three terms.
        x: decides the dtype of the operands.
        y: cast to x's dtype.
    """
    return _einsum(equation, x, y)


def product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`einsum` without its backward pass."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, y.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32)


def _forward(equation: str, x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(equation, x, y), (x, y)


def _backward(equation: str, inputs: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = inputs
    operands, out = equation.split("->")
    x_axes, y_axes = operands.split(",")
    g = g.astype(x.dtype)
    dx, dy = product(f"{out},{y_axes}->{x_axes}", g, y), product(f"{x_axes},{out}->{y_axes}", x, g)
    return dx.astype(x.dtype), dy.astype(y.dtype)


_einsum: Any = jax.custom_vjp(product, nondiff_argnums=(0,))
_einsum.defvjp(_forward, _backward)


# Random blocks start as small changes of the residual stream: at full size they bury what the image says in it, and a
# model trained from scratch takes several times as long to see.
RESIDUAL = 0.1


class Adapters(NamedTuple):
    """Low-rank changes of kernels, `scale * A B`.

    Attributes:
        rank: columns of A, rows of B.
        scale: of their product.
    """

    rank: int
    scale: float


class Linear(nnx.Module):
    """An affine map between groups of axes: kernel `[*inputs, *outputs]`, bias `[*outputs]`.

    A random kernel keeps the size of its inputs, times `gain`. With adapters, A `[*inputs, rank]` starts at random and
    B `[rank, *outputs]` at 0, so that they change nothing yet.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias: bool,
        gain: float = 1.0,
        adapters: Adapters | None = None,
        rngs: nnx.Rngs,
    ):
        self.inputs = len(inputs)
        deviation, key = prod(inputs) ** -0.5, rngs.params()
        self.kernel = nnx.Param(gain * deviation * jax.random.normal(key, (*inputs, *outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        rank, self.scale = adapters or (0, 0.0)
        key = jax.random.fold_in(key, 1)  # kernels are the same with and without adapters
        self.lora_a = nnx.Param(deviation * jax.random.normal(key, (*inputs, rank))) if rank else None
        self.lora_b = nnx.Param(jnp.zeros((rank, *outputs))) if rank else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., *inputs] -> [..., *outputs]` in x's dtype; bias and adapters join before the result is rounded."""
        kernel = self.kernel[...]
        batch, summed = "abcdefgh"[: x.ndim - self.inputs], "ijk"[: self.inputs]
        out = "xyz"[: kernel.ndim - self.inputs]
        y = einsum(f"{batch}{summed},{summed}{out}->{batch}{out}", x, kernel)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        if self.lora_a is not None and self.lora_b is not None:
            low = einsum(f"{batch}{summed},{summed}r->{batch}r", x, self.lora_a[...])
            low = checkpoint_name(low.astype(x.dtype), PRODUCT)
            y += self.scale * einsum(f"{batch}r,r{out}->{batch}{out}", low, self.lora_b[...])
        return checkpoint_name(y.astype(x.dtype), PRODUCT)


class RMSNorm(nnx.Module):
    """Root-mean-square norm; rounds to x's dtype before the scale, as the published model was trained."""

    def __init__(self, size: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size] -> [..., size]`."""
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, size: int, hidden: int, *, bias: bool, adapters: Adapters | None = None, rngs: nnx.Rngs):
        linear = partial(Linear, bias=bias, adapters=adapters, rngs=rngs)
        self.gate_proj = linear((size,), (hidden,))
        self.up_proj = linear((size,), (hidden,))
        self.down_proj = linear((hidden,), (size,), gain=RESIDUAL)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size] -> [..., size]`."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def stacked(layer: Callable[..., Layer], count: int, *args: object, rngs: nnx.Rngs) -> Layer:
    """`count` layers as one module whose parameters carry a leading layer axis, ready for `scan`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> Layer:
        return layer(*args, rngs=rngs)

    return create(rngs)


def unstacked(layers: Layer) -> tuple[Callable[[nnx.State], Layer], nnx.State]:
    """How a scan's body makes one layer of its slice, and the parameters to scan over."""
    graphdef, parameters = nnx.split(layers)
    return partial(nnx.merge, graphdef), parameters


def rematerialised(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Wraps a scan's body so that the backward pass keeps only what the policy says."""
    match remat:
        case Remat.NONE:
            return body
        case Remat.DOTS:
            return jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))
        case Remat.BLOCK:
            return jax.checkpoint(body)
