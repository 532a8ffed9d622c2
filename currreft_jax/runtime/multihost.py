"""Values between hosts, and between hosts and devices; every host calls each function at the same place of a run.

Named as multi-controller JAX has it: a host is a process, and a global array has shards on the devices of all of them.
Values of hosts travel through the coordinator. A collective of the devices would run after every program that was
dispatched before it: the first one of a step would wait for the update of the step before.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as runtime  # its client keeps keys and values; it has no public name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config.missing import describe_error
from currreft_jax.runtime.cores import Cores, own_cores, share_of_cores
from currreft_jax.runtime.sharding import BATCH, data_shards, path_of
from currreft_jax.structs import Array

_EXCHANGES = "currreft_jax/allgather"
_exchanges: defaultdict[str, count[int]] = defaultdict(count)  # by thread, whose names are the same on all hosts
_PATIENCE = 3_600  # seconds; JAX ends this process much sooner where another one has died
_REFUSALS = "currreft_jax/refusals"
_REFUSALS_EVERY = 1  # seconds between two looks for them while a host waits


class RefusedElsewhere(RuntimeError):
    """Another host has refused the run; the message names it and its reason."""


def exit_refused(program: str, error: Exception) -> NoReturn:
    """Exits with an error's message, and tells the other hosts, which end with it at their next exchange."""
    state = runtime.global_state
    if state.client is not None and not isinstance(error, RefusedElsewhere):
        reason = f"host {state.process_id} ({socket.gethostname()}) has ended: {describe_error(error)}"
        state.client.key_value_set(f"{_REFUSALS}/{state.process_id}", reason, allow_overwrite=True)
    sys.exit(f"{program}: {describe_error(error)}")


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
    stacked = _stack_hosts(list(arrays.values()))
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in zip(arrays, stacked, strict=True)}


def gather_bytes(content: bytes) -> list[bytes]:
    """Gathers each host's bytes through the coordinator; each thread of a host with that of the same name elsewhere.

    Raises:
        RefusedElsewhere: another host has ended by `exit_refused` instead.
    """
    state = runtime.global_state
    if state.client is None:
        return [content]
    thread = threading.current_thread().name
    exchange = next(_exchanges[thread])
    folder = f"{_EXCHANGES}/{thread}"
    state.client.key_value_set_bytes(f"{folder}/{exchange}/{state.process_id}", content)
    received = [_await_bytes(state.client, f"{folder}/{exchange}/{host}") for host in range(state.num_processes)]
    if exchange:  # every host has read the exchange before this one
        state.client.key_value_delete(f"{folder}/{exchange - 1}/{state.process_id}")
    return received


def _await_bytes(client: Any, key: str) -> bytes:
    """Waits for another host's bytes, or for its refusal."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, 1000 * _REFUSALS_EVERY)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > end:
                raise
        if refusals := client.key_value_dir_get(f"{_REFUSALS}/"):
            raise RefusedElsewhere("; ".join(reason for _, reason in refusals))


def max_over_hosts(values: np.ndarray) -> np.ndarray:
    """Takes the elementwise maximum over hosts."""
    return values if jax.process_count() == 1 else _stack_hosts([values])[0].max(axis=0)


def sum_over_hosts(values: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Sums each array over hosts."""
    return values if jax.process_count() == 1 else tuple(x.sum(axis=0) for x in _stack_hosts(values))


def local_cores() -> int:
    """Returns the number of CPU cores that this host can keep busy beside the other hosts on its machine."""
    own = own_cores()
    return share_of_cores(own, [Cores(*json.loads(content)) for content in gather_bytes(json.dumps(own).encode())])


def same_on_all_hosts(content: bytes) -> bool:
    """Returns true if every host has these bytes."""
    return len(set(gather_bytes(content))) == 1


def _stack_hosts(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gathers arrays of the same shapes and dtypes on all hosts, bit for bit: `[hosts, ...]` each."""
    parts = gather_bytes(b"".join(x.tobytes() for x in arrays))
    ends = np.cumsum([x.nbytes for x in arrays])
    return [
        np.stack([np.frombuffer(part[end - x.nbytes : end], x.dtype).reshape(x.shape) for part in parts])
        for x, end in zip(arrays, ends, strict=True)
    ]
