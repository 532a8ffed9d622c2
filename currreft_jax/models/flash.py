"""Attention by a fused kernel, which never writes the scores: cuDNN's on CUDA, splash attention on TPUs; bf16 alone.

A kernel takes one source of keys: those of a prompt are repeated for its completions, in front of their own. Neither
kernel differentiates through a merge of two sources. A shape that a kernel does not take is left to
`attention.attend`, and a line says so when the program that has it is traced.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import AttentionKernel
from currreft_jax.runtime.distributed import is_main
from currreft_jax.runtime.sharding import BATCH, local_device

_OF_PLATFORM = {"gpu": AttentionKernel.CUDNN, "cuda": AttentionKernel.CUDNN, "tpu": AttentionKernel.SPLASH}
_NEEDS = {AttentionKernel.CUDNN: "a CUDA GPU", AttentionKernel.SPLASH: "a TPU"}
LANES = 128  # splash attention takes lengths in multiples of it
_SPLASH_BLOCKS = (512, 384, 256, 128)  # queries, or keys, that splash attention holds at a time
_NO_SEGMENT = -2  # id of keys that no query has


def choose_kernel(setting: AttentionKernel, mesh: Mesh, dtype: jnp.dtype) -> AttentionKernel:
    """Returns the kernel that a setting names, or that `AUTO` chooses by the mesh's platform and the dtype.

    Raises:
        ValueError: the setting names a kernel that the platform or the dtype does not have.
    """
    platform = local_device(mesh).platform
    available = _OF_PLATFORM.get(platform) if dtype == jnp.bfloat16 else None
    if setting is AttentionKernel.AUTO:
        return available or AttentionKernel.EINSUM
    if setting not in (AttentionKernel.EINSUM, available):
        raise ValueError(
            f"model.attention={setting.value} needs {_NEEDS[setting]} and model.dtype=bfloat16, not {platform} and"
            f" {jnp.dtype(dtype).name}: write auto or einsum"
        )
    return setting


class Sequences(NamedTuple):
    """Queries, and the keys and values that they attend to: P prompts with C sequences each.

    Attributes:
        query: `[P, C, T, K, H / K, head]`.
        key: `[P, C, S, K, head]`.
        value: `[P, C, S, K, head]`.
        prompt_key: `[P, L, K, head]`, seen by all sequences of a prompt; None without prompts.
        prompt_value: `[P, L, K, head]`.
        prompt_mask: bool `[P, L]`, false on padding.
        query_ids: int `[P, C, T]`; a query sees the keys of its own id. None for all.
        key_ids: int `[P, C, S]`; every id of `query_ids` is among them.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    prompt_key: jax.Array | None = None
    prompt_value: jax.Array | None = None
    prompt_mask: jax.Array | None = None
    query_ids: jax.Array | None = None
    key_ids: jax.Array | None = None


@dataclass(frozen=True)
class FlashAttention:
    """A kernel and the layout of what it gets.

    Attributes:
        kernel: `EINSUM` takes nothing.
        mesh: the devices; prompts are sharded over data x fsdp.
        tensor: what the tensor axis shards: key/value heads or queries; None for nothing.
        causal: whether a query sees only those of `Sequences.key` up to its own index.
    """

    kernel: AttentionKernel
    mesh: Mesh
    tensor: Literal["heads", "queries"] | None
    causal: bool

    def takes(self, sequences: Sequences) -> bool:
        """Returns true if the kernel compiles for these shapes; each is tried once, and a refusal printed."""
        if self.kernel is AttentionKernel.EINSUM:
            return False
        sharded = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)),
            sequences,
            self._specs(sequences),
        )
        with _TRYING:
            return _compiles(self.kernel, local_device(self.mesh), self.causal, sharded)

    def __call__(self, sequences: Sequences) -> jax.Array:
        """Returns the attended values `[P, C, T, K, H / K, head]`."""
        specs = self._specs(sequences)
        attend = partial(_KERNELS[self.kernel], causal=self.causal)
        # Each device runs the kernel on its own shard, so no partitioner has to know the kernel.
        sharded = jax.shard_map(attend, mesh=self.mesh, in_specs=(specs,), out_specs=specs.query, check_vma=False)
        return sharded(sequences)

    def _specs(self, sequences: Sequences) -> Any:
        """Returns the sharding of each array, `Sequences` of partition specs."""
        heads, queries = ("tensor" if self.tensor == sharded else None for sharded in ("heads", "queries"))
        keys = P(BATCH, None, None, heads)
        specs: dict[str, Any] = {
            "query": P(BATCH, None, queries, heads),
            "key": keys,
            "value": keys,
            "prompt_key": P(BATCH, None, heads),
            "prompt_value": P(BATCH, None, heads),
            "prompt_mask": P(BATCH),
            "query_ids": P(BATCH, None, queries),
            "key_ids": P(BATCH),
        }
        given: dict[str, Any] = {name: None if x is None else specs[name] for name, x in sequences._asdict().items()}
        return Sequences(**given)


_TRYING = Lock()  # programs may be traced in several threads


@lru_cache(maxsize=256)
def _compiles(kernel: AttentionKernel, device: Any, causal: bool, sequences: Sequences) -> bool:
    """Compiles the kernel, forward and backward, for a device's part of these shapes; prints why it does not."""
    try:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.sharding.shard_shape(x.shape), x.dtype, sharding=SingleDeviceSharding(device)
            ),
            sequences,
        )
        trained = {name: x for name, x in shapes._asdict().items() if x is not None and x.dtype == shapes.query.dtype}

        def gradient(trained: dict[str, jax.Array], others: Sequences) -> Any:
            attend = partial(_KERNELS[kernel], causal=causal)
            return jax.grad(lambda x: jnp.sum(attend(others._replace(**x)).astype(jnp.float32)))(trained)

        jax.jit(gradient).lower(trained, shapes).compile()
    except (RuntimeError, NotImplementedError, ValueError) as error:  # of XLA and cuDNN, of a kernel's own checks
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        say_einsum(kernel, f"queries {sequences.query.shape} with {num_keys(sequences)} keys", reason)
        return False
    return True


def say_einsum(kernel: AttentionKernel, what: str, reason: str) -> None:
    """Prints that einsum computes attention which the kernel does not take, once for all hosts."""
    if is_main():
        print(f"attention: {kernel.value} does not take {what} ({reason}): einsum takes over", file=sys.stderr)


def num_keys(sequences: Sequences) -> int:
    """Returns the keys of each query, masked ones included."""
    return sequences.key.shape[2] + (0 if sequences.prompt_key is None else sequences.prompt_key.shape[1])


# --------------------------------------------------------------------------------------------------------------- cuDNN


def attend_cudnn(sequences: Sequences, *, causal: bool) -> jax.Array:
    """Attends by cuDNN: one call with all sequences as its batch."""
    query = sequences.query
    flat = query.reshape(-1, query.shape[2], query.shape[3] * query.shape[4], query.shape[5])
    key = _with_prompt(sequences.prompt_key, sequences.key)
    value = _with_prompt(sequences.prompt_value, sequences.value)
    mask = _dense_mask(sequences, causal)
    out = jax.nn.dot_product_attention(
        flat,
        key.reshape(-1, *key.shape[2:]),
        value.reshape(-1, *value.shape[2:]),
        mask=mask,
        is_causal=causal and mask is None,
        implementation="cudnn",
    )
    return out.reshape(query.shape)


def _with_prompt(prompt: jax.Array | None, own: jax.Array) -> jax.Array:
    """Puts the keys or values of a prompt in front of those of each of its sequences, `[P, C, L + S, K, head]`."""
    if prompt is None:
        return own
    shape = (*own.shape[:2], *prompt.shape[1:])
    # In fp32, so that the gradients of all sequences add up in it.
    repeated = jnp.broadcast_to(prompt.astype(jnp.float32)[:, None], shape).astype(own.dtype)
    return jnp.concatenate([repeated, own], axis=2)


def _dense_mask(sequences: Sequences, causal: bool) -> jax.Array | None:
    """Returns bool `[P * C or 1, 1, T, keys]`; None if causality says it all."""
    query, key = sequences.query, sequences.key
    if sequences.prompt_mask is None and sequences.key_ids is None:
        return None
    own = jnp.ones((1, 1, query.shape[2], key.shape[2]), bool)
    if causal:
        own = jnp.tril(own)
    if sequences.key_ids is not None and sequences.query_ids is not None:
        own &= sequences.query_ids[..., :, None] == sequences.key_ids[..., None, :]
    mask = own
    if sequences.prompt_mask is not None:
        prompts, prompt_length = sequences.prompt_mask.shape
        prompt = jnp.broadcast_to(
            sequences.prompt_mask[:, None, None], (prompts, own.shape[1], query.shape[2], prompt_length)
        )
        mask = jnp.concatenate([prompt, jnp.broadcast_to(own, (prompts, *own.shape[1:]))], axis=-1)
    if mask.shape[:2] != (1, 1):  # cuDNN reads one mask for all, or one for each
        mask = jnp.broadcast_to(mask, (*query.shape[:2], *mask.shape[2:]))
    return mask.reshape(-1, 1, *mask.shape[2:])


# -------------------------------------------------------------------------------------------------------------- splash


def attend_splash(sequences: Sequences, *, causal: bool) -> jax.Array:
    """Attends by splash attention: a multi-query kernel for each sequence and key/value head.

    Lengths are padded to multiples of `LANES`. A padded query has the id of the last one, so that it sees a key.
    """
    query = sequences.query
    prompts, count, length, kv_heads, group, head_dim = query.shape
    scaled = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    heads_first = jnp.moveaxis(_pad(scaled, 2), 2, 4).reshape(prompts * count, kv_heads, group, -1, head_dim)
    prompt_length = 0
    if sequences.prompt_key is not None and sequences.prompt_value is not None:
        prompt_key, prompt_value = _pad(sequences.prompt_key, 1), _pad(sequences.prompt_value, 1)
        prompt_length = prompt_key.shape[1]
        key, value = (
            _with_prompt(prompt_key, _pad(sequences.key, 2)),
            _with_prompt(prompt_value, _pad(sequences.value, 2)),
        )
    else:
        key, value = _pad(sequences.key, 2), _pad(sequences.value, 2)
    segments = _segment_ids(sequences)
    kernel = _splash_kernel(heads_first.shape[3], key.shape[2], group, prompt_length if causal else None)
    of_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    of_sequences = jax.vmap(of_heads, in_axes=(0, 0, 0, None if segments is None else 0))
    key, value = (jnp.swapaxes(x.reshape(-1, *x.shape[2:]), 1, 2) for x in (key, value))
    out = of_sequences(heads_first, key, value, segments)[:, :, :, :length]
    return jnp.moveaxis(out.reshape(prompts, count, kv_heads, group, length, head_dim), 4, 2)


def _splash_kernel(num_queries: int, num_keys: int, group: int, offset: int | None) -> Any:
    """Makes the kernel of one key/value head; the offset is that of query 0 among the keys, None without causality."""
    shape = (num_queries, num_keys)
    mask = splash_masks.FullMask(shape) if offset is None else splash_masks.CausalMask(shape, offset=offset)
    block_q, block_kv = (next(size for size in _SPLASH_BLOCKS if length % size == 0) for length in shape)
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        use_fused_bwd_kernel=True,
    )
    return splash.make_splash_mqa_single_device(splash_masks.MultiHeadMask([mask] * group), block_sizes=sizes)


def _segment_ids(sequences: Sequences) -> splash.SegmentIds | None:
    """Returns ids `[P * C, padded length]` of queries and keys: a query sees the keys of its id."""
    prompts, count, length = sequences.query.shape[:3]
    if sequences.query_ids is not None and sequences.key_ids is not None:
        query = _pad(sequences.query_ids, 2, mode="edge")
        key = _pad(sequences.key_ids, 2, constant_values=_NO_SEGMENT)
    elif sequences.prompt_mask is not None:
        query = _pad(jnp.ones((prompts, count, length), jnp.int32), 2, mode="edge")
        prompt = _pad(sequences.prompt_mask.astype(jnp.int32), 1)
        repeated = jnp.broadcast_to(prompt[:, None], (prompts, count, prompt.shape[1]))
        own = _pad(jnp.ones((prompts, count, sequences.key.shape[2]), jnp.int32), 2, mode="edge")
        key = jnp.concatenate([repeated, own], axis=2)
    else:
        return None
    return splash.SegmentIds(*(ids.reshape(-1, ids.shape[2]).astype(jnp.int32) for ids in (query, key)))


def _pad(x: jax.Array, axis: int, **mode: Any) -> jax.Array:
    """Pads an axis at its end to a multiple of `LANES`, with zeros by default."""
    width = [(0, -size % LANES if index == axis else 0) for index, size in enumerate(x.shape)]
    return jnp.pad(x, width, **mode)


_KERNELS = {AttentionKernel.CUDNN: attend_cudnn, AttentionKernel.SPLASH: attend_splash}
