"""Layers that the decoder and the vision tower share: einsum, linear, RMSNorm, gated MLP, stacking and remat."""

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
from currreft_jax.runtime.sharding import rounded

Layer = TypeVar("Layer", bound=nnx.Module)

MATMUL_OUTPUT = "product"  # checkpoint name of what `Remat.DOTS` saves
MASK_VALUE = float(jnp.finfo(jnp.float32).min)  # a masked score or logit: its softmax weight is 0


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes an einsum in x's dtype, accumulated and returned in fp32.

    fp32 operands are multiplied exactly; an accelerator's default would round them to TF32 or bf16.

    The backward pass casts the cotangent to x's dtype, so that its matmuls run at the same speed, and returns the
    gradient of y in y's dtype: an fp32 parameter gets an fp32 gradient from bf16 matmuls.

    Args:
        equation: equation of the form `ab,bc->ac`; every axis occurs in at least two of the three terms.
        x: sets the dtype of the operands.
        y: cast to x's dtype.
    """
    return _einsum(equation, x, y)


def einsum_no_vjp(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes `einsum` without its custom backward pass."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, y.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32)


def _forward(equation: str, x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return einsum_no_vjp(equation, x, y), (x, y.astype(x.dtype), jnp.empty(0, y.dtype))


def _backward(equation: str, residuals: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y, like_y = residuals  # y is kept in x's dtype, half of an fp32 parameter; the empty array knows its own
    operands, out = equation.split("->")
    x_axes, y_axes = operands.split(",")
    g = g.astype(x.dtype)
    dx, dy = einsum_no_vjp(f"{out},{y_axes}->{x_axes}", g, y), einsum_no_vjp(f"{x_axes},{out}->{y_axes}", x, g)
    return dx.astype(x.dtype), dy.astype(like_y.dtype)


_einsum: Any = jax.custom_vjp(einsum_no_vjp, nondiff_argnums=(0,))
_einsum.defvjp(_forward, _backward)


# Init scale of the last kernel of a residual block. At 1.0 random blocks drown the image's signal in the residual
# stream, and a model trained from scratch takes several times as long to use images.
RESIDUAL_INIT_SCALE = 0.1


class Adapters(NamedTuple):
    """Low-rank adapters of a kernel, `kernel + scale * A B`.

    Attributes:
        rank: columns of A, rows of B.
        scale: factor of their product.
    """

    rank: int
    scale: float


class Linear(nnx.Module):
    """An affine map between groups of axes: kernel `[*inputs, *outputs]`, bias `[*outputs]`.

    The kernel is initialised with standard deviation `init_scale / sqrt(inputs)`. With adapters, A `[*inputs, rank]` is
    random and B `[rank, *outputs]` is 0, so that they have no effect at first.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        bias: bool,
        init_scale: float = 1.0,
        adapters: Adapters | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_input_axes = len(inputs)
        stddev, key = prod(inputs) ** -0.5, rngs.params()
        self.kernel = nnx.Param(init_scale * stddev * jax.random.normal(key, (*inputs, *outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        rank, self.scale = adapters or (0, 0.0)
        key = jax.random.fold_in(key, 1)  # kernels are the same with and without adapters
        self.lora_a = nnx.Param(stddev * jax.random.normal(key, (*inputs, rank))) if rank else None
        self.lora_b = nnx.Param(jnp.zeros((rank, *outputs))) if rank else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., *inputs] -> [..., *outputs]` in x's dtype; bias and adapters are added before rounding."""
        kernel = self.kernel[...]
        batch, inputs = "abcdefgh"[: x.ndim - self.num_input_axes], "ijk"[: self.num_input_axes]
        outputs = "xyz"[: kernel.ndim - self.num_input_axes]
        y = einsum(f"{batch}{inputs},{inputs}{outputs}->{batch}{outputs}", x, kernel)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        if self.lora_a is not None and self.lora_b is not None:
            low_rank = einsum(f"{batch}{inputs},{inputs}r->{batch}r", x, self.lora_a[...])
            low_rank = checkpoint_name(low_rank.astype(x.dtype), MATMUL_OUTPUT)
            y += self.scale * einsum(f"{batch}r,r{outputs}->{batch}{outputs}", low_rank, self.lora_b[...])
        return checkpoint_name(y.astype(x.dtype), MATMUL_OUTPUT)


class RMSNorm(nnx.Module):
    """Root-mean-square norm; rounds to x's dtype before the scale, as the published models do.

    The product of both is computed in fp32 and rounded, so that the gradient of the scale adds up in fp32.
    """

    def __init__(self, size: int, eps: float, *, rngs: nnx.Rngs):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size] -> [..., size]`."""
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        scale = rounded(self.scale[...], x.dtype).astype(jnp.float32)
        return (y.astype(x.dtype).astype(jnp.float32) * scale).astype(x.dtype)


class GatedMLP(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, size: int, hidden: int, *, bias: bool, adapters: Adapters | None = None, rngs: nnx.Rngs):
        linear = partial(Linear, bias=bias, adapters=adapters, rngs=rngs)
        self.gate_proj = linear((size,), (hidden,))
        self.up_proj = linear((size,), (hidden,))
        self.down_proj = linear((hidden,), (size,), init_scale=RESIDUAL_INIT_SCALE)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., size] -> [..., size]`."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


def stack_layers(layer: Callable[..., Layer], count: int, *args: object, rngs: nnx.Rngs) -> Layer:
    """Makes `count` layers as one module whose parameters have a leading layer axis, ready for `scan`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0)
    def create(rngs: nnx.Rngs) -> Layer:
        return layer(*args, rngs=rngs)

    return create(rngs)


def split_stack(layers: Layer) -> tuple[Callable[[nnx.State], Layer], nnx.State]:
    """Splits stacked layers into a function that makes one layer from its parameters, and all parameters."""
    graphdef, parameters = nnx.split(layers)
    return partial(nnx.merge, graphdef), parameters


def apply_remat(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Wraps the body of a scan in `jax.checkpoint` under the given policy."""
    match remat:
        case Remat.NONE:
            return body
        case Remat.DOTS:
            return jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT))
        case Remat.BLOCK | Remat.AUTO:  # not chosen where nothing is trained
            return jax.checkpoint(body)
