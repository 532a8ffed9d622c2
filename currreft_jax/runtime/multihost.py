"""Values between hosts, and between hosts and devices; every host calls each function at the same place of a run.

Named as multi-controller JAX has it: a host is a process, and a global array has shards on the devices of all of them.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import jax
import numpy as np
from jax._src import distributed as runtime  # its client keeps keys and values; it has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.runtime.sharding import BATCH, data_shards, path_of
from currreft_jax.structs import Array

_EXCHANGES = "currreft_jax/allgather"
_exchanges = count()
_PATIENCE = 3_600_000  # milliseconds; JAX ends this process much sooner where another one has died


def shards_per_host(mesh: Mesh) -> int:
    """Returns the number of data shards per host.

    Raises:
        ValueError: a data shard spans hosts.
    """
    if data_shards(mesh) % jax.process_count():
        raise ValueError(
            f"{data_shards(mesh)} data shards (mesh.data x mesh.fsdp) do not divide into {jax.process_count()} hosts:"
            " keep the tensor axis within a host"
        )
    return data_shards(mesh) // jax.process_count()


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Makes each host's own rows into global arrays, split over data x fsdp along their first axis.

    The rows are those of the host's shards in the order of the mesh, where they need not be consecutive.

    Raises:
        ValueError: the rows do not divide into the shards; the message names both.
    """
    shards = data_shards(mesh)

    def put(path: tuple[Any, ...], x: np.ndarray) -> jax.Array:
        rows = x.shape[0] * jax.process_count()
        if rows % shards:
            raise ValueError(
                f"{path_of(path)}: {rows} rows do not divide into {shards} data shards (data x fsdp);"
                " pad the batch or change the mesh"
            )
        return jax.make_array_from_process_local_data(NamedSharding(mesh, P(BATCH)), x)

    return jax.tree_util.tree_map_with_path(put, batch)


def local_rows(x: Array) -> np.ndarray:
    """Fetches this host's rows of an array that is split over data x fsdp; NumPy arrays are these rows already."""
    if jax.process_count() == 1 or isinstance(x, np.ndarray):
        return np.asarray(x)
    x = jax.device_put(x, NamedSharding(x.sharding.mesh, P(BATCH)))
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def allgather(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Concatenates the rows of all hosts in the order of the hosts, bit for bit."""
    if jax.process_count() == 1:
        return arrays
    # As pairs of uint32: JAX would round float64 to float32.
    words = {name: np.ascontiguousarray(x, np.float64).view(np.uint32) for name, x in arrays.items()}
    return {
        name: np.ascontiguousarray(x).view(np.float64).astype(arrays[name].dtype).reshape(-1, *arrays[name].shape[1:])
        for name, x in multihost_utils.process_allgather(words).items()
    }


def gather_bytes(content: bytes) -> list[bytes]:
    """Gathers each host's bytes through the coordinator: needs no device, and may run in any one thread."""
    state = runtime.global_state
    if state.client is None:
        return [content]
    exchange = next(_exchanges)
    state.client.key_value_set_bytes(f"{_EXCHANGES}/{exchange}/{state.process_id}", content)
    received = [
        state.client.blocking_key_value_get_bytes(f"{_EXCHANGES}/{exchange}/{host}", _PATIENCE)
        for host in range(state.num_processes)
    ]
    if exchange:  # every host has read the exchange before this one
        state.client.key_value_delete(f"{_EXCHANGES}/{exchange - 1}/{state.process_id}")
    return received


def allgather_on_hosts(x: np.ndarray) -> np.ndarray:
    """Gathers one array as `gather_bytes` does."""
    parts = gather_bytes(x.tobytes())
    return np.concatenate([np.frombuffer(part, x.dtype) for part in parts]).reshape(-1, *x.shape[1:])


def max_over_hosts(values: np.ndarray) -> np.ndarray:
    """Takes the elementwise maximum over hosts."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(axis=0)


def sum_over_hosts(values: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Sums each array over hosts."""
    if jax.process_count() == 1:
        return values
    return tuple(np.asarray(gathered).sum(axis=0) for gathered in multihost_utils.process_allgather(values))


def same_on_all_hosts(content: bytes) -> bool:
    """Returns true if every host has these bytes."""
    if jax.process_count() == 1:
        return True
    return not np.ptp(multihost_utils.process_allgather(np.frombuffer(content, np.uint8)), axis=0).any()
