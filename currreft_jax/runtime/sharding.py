"""Where every array lives: the mesh, the one table of parameter rules, and host rows made into global arrays."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax import structs

if TYPE_CHECKING:
    from collections.abc import Sequence

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
STACKS = ("layers", "visual/blocks")  # paths of stacked layers

for _struct, _static in (
    (structs.PackedImages, ["max_slots_per_image"]),
    (structs.PromptBatch, []),
    (structs.GroupBatch, []),
    (structs.Prefix, []),
    (structs.Rollout, []),
    (structs.GrpoTargets, []),
):
    _arrays = [field.name for field in dataclasses.fields(_struct) if field.name not in _static]
    jax.tree_util.register_dataclass(_struct, _arrays, _static)

# The first pattern that a parameter's path contains decides. Stacked layers carry their axis in front.
# An axis that does not divide its dimension is left whole there: the 2 key/value heads of the 3B on tensor = 4,
# or the 3,420 wide vision MLP, which therefore splits over its input side only.
PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (r"visual/patch_embed/proj/kernel", P(None, None, None, None, "fsdp")),
    (r"visual/blocks/attn/qkv/kernel", P(None, "fsdp")),
    (r"visual/blocks/attn/proj/kernel", P(None, None, None, "fsdp")),
    (r"visual/blocks/mlp/(gate|up)_proj/kernel", P(None, "fsdp")),
    (r"visual/blocks/mlp/down_proj/kernel", P(None, None, "fsdp")),
    (r"visual/merger/.*/kernel", P("fsdp")),
    (r"visual/", P()),
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"lm_head/kernel", P("fsdp", "tensor")),
    (r"self_attn/[qkv]_proj/kernel", P(None, "fsdp", "tensor")),
    (r"self_attn/[qkv]_proj/bias", P(None, "tensor")),
    (r"self_attn/o_proj/kernel", P(None, "tensor", None, "fsdp")),
    (r"mlp/(gate|up)_proj/kernel", P(None, "fsdp", "tensor")),
    (r"mlp/down_proj/kernel", P(None, "tensor", "fsdp")),
    (r"(self_attn/[qkv]|mlp/(gate|up))_proj/lora_a", P(None, "fsdp")),
    (r"(self_attn/[qkv]|mlp/(gate|up))_proj/lora_b", P(None, None, "tensor")),
    (r"(o|down)_proj/lora_a", P(None, "tensor")),
    (r"(o|down)_proj/lora_b", P(None, None, "fsdp")),
    (r"norm/scale", P()),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays the devices out as data x fsdp x tensor.

    Args:
        data: copies of the parameters.
        fsdp: parts of the parameters and the optimizer state; groups are split over data x fsdp.
        tensor: parts of each matrix product.
        devices: all of them by default.

    One of the three sizes may be -1: the devices that the others leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill_sizes([data, fsdp, tensor], len(devices))
    return Mesh(_arrange_devices(devices, sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def reshape_mesh(mesh: Mesh, data: int, tensor: int) -> Mesh:
    """Lays a mesh's devices out as data x 1 x tensor, in the order of the mesh.

    A jitted function may use both meshes only if they have their devices in one order. One of the two sizes may be -1.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = _fill_sizes([data, 1, tensor], mesh.size)
    return Mesh(mesh.devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def _fill_sizes(sizes: list[int], num_devices: int) -> list[int]:
    """Replaces a size of -1 by the devices that the others leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    filled = [*sizes]
    if sizes.count(-1) == 1:
        filled[sizes.index(-1)] = num_devices // -prod(sizes)
    if min(filled) < 1 or prod(filled) != num_devices:
        data, fsdp, tensor = sizes
        raise ValueError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} does not fill {num_devices} devices: the three sizes must"
            " multiply to that number, and at most one may be -1"
        )
    return filled


def _arrange_devices(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """Arranges devices in the shape of a mesh: TPUs so that neighbours of an axis are close, others as they come.

    The copies of the data axis are divided over the slices. TPUs stay as they come where that is impossible, where the
    devices of a slice are no cuboid, and where a process would hold parts of its data shards only.
    """
    as_listed = np.asarray(devices).reshape(*sizes)
    if devices[0].platform != "tpu":
        return as_listed
    slices = [[device for device in devices if _slice_index(device) == index] for index in _slice_indices(devices)]
    copies, rest = divmod(sizes[0], len(slices))
    if rest or not all(map(_is_cuboid, slices)):
        return as_listed
    shape = (copies, *sizes[1:])
    arranged = np.concatenate(
        [mesh_utils.create_device_mesh(shape, part, allow_split_physical_axes=True) for part in slices]
    )
    return arranged if _keeps_shards_whole(arranged) else as_listed


def _slice_indices(devices: Sequence[Any]) -> list[int]:
    return list(dict.fromkeys(map(_slice_index, devices)))


def _slice_index(device: Any) -> int:
    """Returns the slice of a TPU; 0 where it is the only one, of which JAX's topologies give no index."""
    return device.slice_index if hasattr(device, "slice_index") else 0


def _is_cuboid(devices: Sequence[Any]) -> bool:
    """Returns true if the devices' coordinates leave no hole, as `create_device_mesh` demands."""
    coordinates = np.array([(*device.coords, device.core_on_chip) for device in devices])
    return prod(np.ptp(coordinates, axis=0) + 1) == len(devices)


def _keeps_shards_whole(devices: np.ndarray) -> bool:
    """Returns true if all devices of each data shard belong to one process."""
    return all(len({device.process_index for device in shard}) == 1 for shard in devices.reshape(-1, devices.shape[2]))


def devices_per_host(devices: Sequence[Any]) -> int:
    """Returns the number of consecutive devices that share links: those of a process, on TPUs those of a slice."""
    owners = Counter(_slice_index(device) if device.platform == "tpu" else device.process_index for device in devices)
    return gcd(*owners.values())


def data_shards(mesh: Mesh) -> int:
    """Returns N, the number of data shards."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_device(mesh: Mesh) -> Any:
    """Returns this process's first device of the mesh; of devices that are not attached the first."""
    process = jax.process_index()
    return next((device for device in mesh.devices.flat if device.process_index == process), mesh.devices.flat[0])


def num_hosts(mesh: Mesh) -> int:
    """Returns the number of processes that hold the mesh's devices."""
    return len({device.process_index for device in mesh.devices.flat})


def constrain(x: jax.Array, mesh: Mesh, *spec: Any) -> jax.Array:
    """Pins the layout of an intermediate array."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


def path_of(key_path: tuple[Any, ...]) -> str:
    """Returns a parameter's path in the nested dict, such as `layers/self_attn/q_proj/kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def parameter_sharding(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns the sharding that `PARAMETER_RULES` gives a parameter."""
    for pattern, spec in PARAMETER_RULES:
        if re.search(pattern, path):
            fits = (
                axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, shape, strict=False)
            )
            return NamedSharding(mesh, P(*fits))
    raise KeyError(f"no rule of PARAMETER_RULES covers {path}")


def parameter_shardings(parameters: Any, mesh: Mesh) -> Any:
    """Returns the tree of shardings of a tree whose leaves have a shape."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: parameter_sharding(path_of(path), x.shape, mesh), parameters
    )


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds to the precision of `dtype` but keeps x's own type; the gradient passes unrounded.

    XLA keeps this rounding. A cast to `dtype` it may skip where the result is converted back.
    """
    return _rounded(x, dtype)


def _round(x: jax.Array, dtype: Any) -> jax.Array:
    bits = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, bits.nexp, bits.nmant)


_rounded: Any = jax.custom_vjp(_round, nondiff_argnums=(1,))
_rounded.defvjp(lambda x, dtype: (_round(x, dtype), None), lambda dtype, _, gradient: (gradient,))


def gathered(parameters: Any, mesh: Mesh, path: str, dtype: Any) -> Any:
    """Rounds parameters to `dtype` and gathers them over fsdp; their gradients stay exact, and are scattered.

    Devices exchange `dtype`, but the result has the type of the parameters. So the gradients of all uses add up in
    fp32 on each device, and are reduced and scattered over fsdp once. A sharding constraint alone would do the
    opposite: its transpose pins the gradient whole, so that every device receives all of it.

    Args:
        parameters: those at `path`, or one layer of a stack.
        mesh: mesh of the computation.
        path: prefix of their paths in `PARAMETER_RULES`.
        dtype: dtype of the matmuls.
    """
    stack_axis = (1,) if path in STACKS else ()

    def gather_leaf(key_path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        sharding = parameter_sharding(f"{path}/{path_of(key_path)}", (*stack_axis, *x.shape), mesh)
        spec = sharding.spec[len(stack_axis) :]
        whole = tuple(None if axis == "fsdp" else axis for axis in spec)

        @jax.custom_vjp
        def gather(x: jax.Array) -> jax.Array:
            return constrain(constrain(rounded(x, dtype).astype(dtype), mesh, *spec), mesh, *whole).astype(x.dtype)

        gather.defvjp(lambda x: (gather(x), None), lambda _, gradient: (constrain(gradient, mesh, *spec),))
        return gather(x)

    return jax.tree_util.tree_map_with_path(gather_leaf, parameters)
