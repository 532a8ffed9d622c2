"""Values between hosts travel through the coordinator, and a host's cores are shared with its neighbours."""

import math
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain, count
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from currreft_jax.config import Config, Method
from currreft_jax.data.buckets import BatchDims
from currreft_jax.runtime import multihost
from currreft_jax.runtime.cores import Cores, container_limit, share_of_cores
from currreft_jax.session import session
from currreft_jax.training.batches import agree_on_dims

HOSTS = 2


class Coordinator:
    """Keys and values of all hosts, and the process index of the calling thread's host."""

    num_processes = HOSTS

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._host = threading.local()

    client = property(lambda self: self)
    process_id = property(lambda self: self._host.index)

    def as_host(self, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function as a thread of the host."""
        self._host.index = index
        return function(*arguments)

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        with self._changed:
            assert key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get_bytes(self, key: str, milliseconds: int) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._values[key]

    def key_value_set(self, key: str, value: str, *, allow_overwrite: bool) -> None:
        self._values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [item for item in self._values.items() if item[0].startswith(folder)]

    def key_value_delete(self, key: str) -> None:
        with self._changed:
            del self._values[key]


@pytest.fixture
def on_hosts(monkeypatch):
    """Submits a function to a thread of every host; those of a role have the same name."""
    coordinator, exchanges = Coordinator(), defaultdict(count)
    by_host = SimpleNamespace(of=lambda thread: exchanges[coordinator.process_id, thread])
    monkeypatch.setattr(multihost, "_exchanges", type("", (), {"__getitem__": lambda _, thread: by_host.of(thread)})())
    monkeypatch.setattr(multihost, "runtime", SimpleNamespace(global_state=coordinator))
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda *_, **__: pytest.fail("asks the devices"))
    monkeypatch.setattr(jax, "process_count", lambda: HOSTS)
    roles: dict[str, list[ThreadPoolExecutor]] = {}

    def submit(function: Callable[..., Any], arguments: list[Any], role: str = "main") -> list[Future]:
        threads = roles.setdefault(role, [ThreadPoolExecutor(1, role) for _ in range(HOSTS)])
        pairs = enumerate(zip(threads, arguments, strict=True))
        return [thread.submit(coordinator.as_host, host, function, own) for host, (thread, own) in pairs]

    yield submit
    for thread in chain(*roles.values()):
        thread.shutdown()


def results(futures: list[Future]) -> list[Any]:
    return [future.result(20) for future in futures]


def test_hosts_agree_without_the_devices(on_hosts):
    own = [[BatchDims(5, 2, 1, 6), BatchDims(3, 0, 0, 8)], [BatchDims(4, 7, 1, 0), BatchDims(9, 1, 1, 9)]]
    assert results(on_hosts(agree_on_dims, own)) == [[BatchDims(5, 7, 1, 6), BatchDims(9, 1, 1, 9)]] * HOSTS
    counts = [(np.array([1, 2]), np.array(3)), (np.array([10, 20]), np.array(30))]
    for total, number in results(on_hosts(multihost.sum_over_hosts, counts)):
        assert total.tolist() == [11, 22] and number == 33
    assert results(on_hosts(multihost.same_on_all_hosts, [b"a", b"a"])) == [True, True]
    assert results(on_hosts(multihost.same_on_all_hosts, [b"a", b"b"])) == [False, False]


def test_hosts_that_wait_end_with_the_reason_of_one_that_refuses(on_hosts, monkeypatch):
    monkeypatch.setattr(multihost, "_REFUSALS_EVERY", 0.01)
    monkeypatch.setattr(multihost, "_PATIENCE", 5)

    def refuse_or_wait(host):
        with pytest.raises(SystemExit) as ended:
            try:
                if host == 0:
                    raise FileNotFoundError("rows.jsonl: no such file")
                multihost.max_over_hosts(np.zeros(1))
            except (FileNotFoundError, multihost.RefusedElsewhere) as error:
                multihost.exit_refused("evaluate", error)
        return str(ended.value)

    first, second = results(on_hosts(refuse_or_wait, [0, 1]))
    assert first == "evaluate: rows.jsonl: no such file"
    assert second.startswith("evaluate: host 0 (") and second.endswith(") has ended: rows.jsonl: no such file")


def test_rows_of_all_hosts_are_gathered_bit_for_bit(on_hosts):
    values = np.random.default_rng(0).normal(size=(HOSTS, 3, 2))
    finished = values > 0
    own = [{"reward": values[host], "finished": finished[host]} for host in range(HOSTS)]
    for gathered in results(on_hosts(multihost.allgather, own)):
        np.testing.assert_array_equal(gathered["reward"], values.reshape(-1, 2))
        np.testing.assert_array_equal(gathered["finished"], finished.reshape(-1, 2))
        assert gathered["reward"].dtype == np.float64 and gathered["finished"].dtype == bool


def test_each_thread_exchanges_with_its_own_on_the_other_hosts(on_hosts):
    late = on_hosts(lambda host: host or multihost.gather_bytes(b"0"), [0, 1], "rewards")  # only one host has come
    assert results(on_hosts(multihost.gather_bytes, [b"a", b"b"])) == [[b"a", b"b"]] * HOSTS
    assert not late[0].done()
    results(on_hosts(lambda host: host and multihost.gather_bytes(b"1"), [0, 1], "rewards"))
    assert results(late) == [[b"0", b"1"], 1]


# ---------------------------------------------------------------------------------------------------------- the cores


@pytest.mark.parametrize(
    ("own", "others", "share"),
    [
        (Cores("a", (0, 1, 2, 3), math.inf), [], 4),
        (Cores("a", (0, 1, 2, 3), math.inf), [Cores("a", (0, 1, 2, 3), math.inf)], 2),
        (Cores("a", (0, 1, 2, 3), math.inf), [Cores("b", (0, 1, 2, 3), math.inf)], 4),
        (Cores("a", (0, 1), math.inf), [Cores("a", (2, 3), math.inf)], 2),
        (Cores("a", (0, 1, 2), math.inf), [Cores("a", (0, 1, 2), math.inf)] * 2, 1),
        (Cores("a", tuple(range(64)), 2.5), [], 2),
        (Cores("a", tuple(range(64)), 8.0), [Cores("a", tuple(range(64)), 8.0)], 4),
        (Cores("a", (0,), math.inf), [Cores("a", (0,), math.inf)], 1),
    ],
)
def test_cores_are_shared_with_the_processes_that_may_use_them_too(own, others, share):
    assert share_of_cores(own, [*others, own]) == share


@pytest.mark.parametrize(
    ("content", "limit"),
    [("200000 100000\n", 2.0), ("50000 100000", 0.5), ("max 100000\n", math.inf), (None, math.inf)],
)
def test_the_limit_of_a_container_is_read(tmp_path, content, limit):
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert container_limit(tmp_path / "cpu.max") == limit


def test_hosts_on_a_machine_share_its_cores(on_hosts, monkeypatch):
    monkeypatch.setattr(multihost, "own_cores", lambda: Cores("here", tuple(range(12)), math.inf))
    assert results(on_hosts(lambda _: multihost.local_cores(), [0, 1])) == [6, 6]


def test_a_session_starts_workers_for_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(session, "choose_meshes", lambda config, *_: config)
    for part in ("make_mesh", "make_model", "load_config_processor"):
        monkeypatch.setattr(session, part, lambda *_: SimpleNamespace(config=None, tokenizer_size=None))
    monkeypatch.setattr(session, "local_cores", lambda: 5)
    monkeypatch.setattr(session, "MathsPool", lambda limits, cores: nullcontext((limits, cores)))
    config = Config(method=Method.GRPO)
    with session.open_session(config) as opened:
        assert opened.reward_pool == (config.rewards.maths, 5)
