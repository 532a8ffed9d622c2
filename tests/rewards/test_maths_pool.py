import math
import os
import signal
import time
from collections.abc import Iterator
from threading import Timer

import pytest

from currreft_jax.config import Maths
from currreft_jax.rewards import MathsPool, MathsPoolError, maths_pool
from currreft_jax.rewards.maths import Comparison, parse_expression
from currreft_jax.rewards.maths_pool import Outcome
from currreft_jax.runtime.cores import Cores
from currreft_jax.structs import Reason
from tests.marks import quick

LIMITS = Maths(workers=2, cpu_seconds=0.5)

HOSTILE = {
    "tower of powers": "9^{9^{9^{9}}}",
    "tower of twos": "2^{2^{2^{2^{2^{2}}}}}",
    "huge power": "10^{10^{12}}",
    "tiny power": "10^{-10^{10}}",
    "huge factorial": "(10^9)!",
    "factorial of digits": "99999999999!",
    "binomial": r"\binom{1000000000}{500000000}",
    "sum without end": r"\sum_{i=1}^{10^{9}} i^i",
    "huge polynomial": "(x+y+z)^{5000}",
    "sine of a tower": r"\sin(10^{10^{10}})",
}


@pytest.mark.parametrize(("workers", "cores", "expected"), [(0, 5, 5), (3, 5, 3), (0, 500, 32), (0, None, 7)])
def test_workers_follow_the_cores_unless_their_number_is_set(monkeypatch, workers, cores, expected):
    started = []
    monkeypatch.setattr(maths_pool, "_Worker", started.append)
    monkeypatch.setattr(maths_pool, "own_cores", lambda: Cores("here", tuple(range(7)), math.inf))
    MathsPool(Maths(workers=workers), cores)
    assert len(started) == expected


@pytest.fixture(scope="module")
def short_pool() -> Iterator[MathsPool]:
    with MathsPool(LIMITS) as pool:
        yield pool


@pytest.mark.parametrize("latex", quick(HOSTILE.values(), 3), ids=HOSTILE.keys())
def test_a_hostile_answer_is_stopped_and_other_verdicts_stand(latex, short_pool):
    root = r"2\sqrt{3}"
    others = [Comparison(root, r"\sqrt{12}"), Comparison(root, r"\sqrt{13}"), Comparison(root, r"\foo{")]
    expected = [Outcome.EQUAL, Outcome.NOT_EQUAL, Outcome.UNPARSABLE]
    assert short_pool.compare(others) == expected
    start = time.monotonic()
    assert short_pool.compare([*others, Comparison(root, latex), *others]) == [*expected, Outcome.OVER_LIMIT, *expected]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "1" + ")" * 100_000,
        "{" * 400 + "1" + "}" * 400,
        r"\frac{1}{" * 100 + "1" + "}" * 100,
        "7" * 3_000_000,
    ],
    ids=["brackets", "braces", "fractions", "digits"],
)
def test_oversized_text_never_reaches_a_worker(text):
    start = time.monotonic()
    assert parse_expression(text, Maths()) is Reason.TIMEOUT
    assert time.monotonic() - start < 1


def test_the_limit_is_cpu_time_and_not_wall_time():
    with MathsPool(Maths(workers=1, cpu_seconds=0.5)) as pool:
        assert pool.compare([Comparison("1", r"\sqrt{2}")]) == [Outcome.NOT_EQUAL]
        [worker] = pool._workers
        os.killpg(worker._process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        Timer(2, os.killpg, (worker._process.pid, signal.SIGCONT)).start()
        assert pool.compare([Comparison("1", r"\sqrt{2}")]) == [Outcome.NOT_EQUAL]
        assert time.monotonic() - stopped > 1.5


def test_wall_time_stops_a_worker_that_uses_no_cpu_time(caplog):
    with MathsPool(Maths(workers=1, cpu_seconds=0.5, wall_seconds=2.0)) as pool:
        assert pool.compare([Comparison("1", r"\sqrt{2}")]) == [Outcome.NOT_EQUAL]
        os.killpg(pool._workers[0]._process.pid, signal.SIGSTOP)
        assert pool.compare([Comparison("1", r"\sqrt{2}")]) == [Outcome.OVER_LIMIT]
        assert "on the clock" in caplog.text
        assert pool.compare([Comparison("1", r"\sqrt{2}")]) == [Outcome.NOT_EQUAL]


def test_memory_is_limited():
    comparison = Comparison("2", "+".join(["x"] * 400) + "-400x+2")
    with MathsPool(Maths(workers=1, memory_mb=256)) as pool:
        assert pool.compare([comparison]) == [Outcome.EQUAL]
    with MathsPool(Maths(workers=1, memory_mb=16)) as pool, pytest.raises(MathsPoolError, match=r"raise .*memory_mb"):
        pool.compare([comparison])


def test_a_killed_worker_is_replaced():
    with MathsPool(Maths(workers=1)) as pool:
        assert pool.compare([Comparison("1", r"\sqrt{1}")]) == [Outcome.EQUAL]
        os.killpg(pool._workers[0]._process.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert pool.compare([Comparison("1", r"\sqrt{1}"), Comparison("1", "2")]) == [Outcome.EQUAL, Outcome.NOT_EQUAL]


def test_an_interrupted_pool_leaves_no_process():
    with pytest.raises(KeyboardInterrupt), MathsPool(Maths(workers=2)) as pool:
        groups = [worker._process.pid for worker in pool._workers]
        raise KeyboardInterrupt
    for group in groups:
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
    with pytest.raises(MathsPoolError, match="closed; open another"):
        pool.compare([Comparison("1", "1")])


def test_an_interrupted_call_leaves_no_reply_for_the_next_one(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with MathsPool(Maths(workers=1)) as pool:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(maths_pool.select, "select", interrupt)
            pool._workers[0]._ready = True
            pool.compare([Comparison("2", r"\sqrt{4}")])
        assert pool.compare([Comparison("2", r"\sqrt{5}")]) == [Outcome.NOT_EQUAL]


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("raise ImportError('No module named math_verify')")
    monkeypatch.setattr(maths_pool, "_SCRIPT", script)
    with (
        MathsPool(Maths(workers=1)) as pool,
        pytest.raises(MathsPoolError, match=r"ImportError: No module named math_verify; if it is not installed, `"),
    ):
        pool.compare([Comparison("1", "1")])


def test_limits_too_small_for_math_verify_are_refused_at_the_start():
    with (
        MathsPool(Maths(workers=1, cpu_seconds=1e-3)) as pool,
        pytest.raises(
            MathsPoolError, match=r"cannot add x 200 times; raise rewards.maths.cpu_seconds or rewards.maths.memory_mb"
        ),
    ):
        pool.compare([Comparison("1", "1")])


def test_equal_comparisons_share_one_outcome(pool):
    comparisons = [Comparison(r"\sqrt{4}", "2"), Comparison(r"\sqrt{4}", "3"), Comparison(r"\sqrt{4}", "2")]
    assert pool.compare(comparisons) == [Outcome.EQUAL, Outcome.NOT_EQUAL, Outcome.EQUAL]
    assert pool.compare([]) == []


def test_a_verdict_does_not_depend_on_earlier_comparisons(pool):
    comparisons = [Comparison(rf"{n}\sqrt{{3}}", rf"\sqrt{{{3 * n * n + n % 2}}}") for n in range(1, 9)]
    outcomes = pool.compare(comparisons)
    assert outcomes == [Outcome.NOT_EQUAL, Outcome.EQUAL] * 4
    assert pool.compare(comparisons[::-1]) == outcomes[::-1]
