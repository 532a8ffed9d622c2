"""Costs of a step: seconds of its phases, tokens per second, MFU, memory, compilations; and traces of steps."""

import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from currreft_jax.config import Config, Data, Logging, Method, Remat, Sampling, Source, Stage
from currreft_jax.data.buckets import config_buckets
from currreft_jax.data.packing import BatchShape
from currreft_jax.planning.devices import DEVICES, device_spec
from currreft_jax.planning.flops import matmul_flops
from currreft_jax.runtime import timing
from currreft_jax.runtime.metrics import read_metrics
from currreft_jax.runtime.profiler import ProfileSteps, StepProfiler, parse_profile_steps
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import CompilationCounter, StepTimer, ended_by_ctrl_c, log_compilations, peak_memory_gb
from currreft_jax.training import mfu, trainer
from currreft_jax.training.batches import Bucket, layout_on
from currreft_jax.training.metrics_buffer import MetricsBuffer, throughput
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.programs import StagePrograms
from currreft_jax.training.update import abstract_state, gradient_function, update_programs
from tests import tiny
from tests.test_grpo import config_of, rows  # noqa: F401 rows is a fixture


class Pending:
    """A result that is ready when it is told to be."""

    def __init__(self) -> None:
        self.ready = threading.Event()

    def block_until_ready(self) -> None:
        assert self.ready.wait(20)


class ReadyAt:
    """A result that is ready at a second of the device's clock."""

    def __init__(self, clock: SimpleNamespace, second: float) -> None:
        self._clock, self._second = clock, second

    def block_until_ready(self) -> None:
        self._clock.device = max(self._clock.device, self._second)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The host's time, and that at which the timer's thread sees the device."""
    now = SimpleNamespace(host=0.0, device=0.0)
    on_host = lambda: threading.current_thread() is threading.main_thread()  # noqa: E731
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.host if on_host() else now.device)
    return now


def test_nobody_waits_for_the_results_that_are_timed(tmp_path):
    pending = Pending()
    with MetricsBuffer(tmp_path) as buffer:
        buffer.timer.record("update", pending)
        seconds = buffer.timer.finish(pending)
        assert not seconds.done()  # `record` and `finish` have returned all the same
        pending.ready.set()
        assert seconds.result(60).keys() == {"step_time", "time/update"}


def test_phases_begin_when_the_device_gets_to_them(clock):
    timer = StepTimer()
    timer.record("prefix", ReadyAt(clock, 3))
    timer.record("decode", ReadyAt(clock, 7))
    timer.record("reference", [None])  # no reference: no arrays
    clock.host = 9  # the device has been idle for 2 seconds
    timer.start()
    timer.record("update", ReadyAt(clock, 12))
    first = timer.finish(ReadyAt(clock, 12.5)).result(60)
    assert first == {"step_time": 12.5, "time/prefix": 3, "time/decode": 4, "time/update": 3}
    # The second step is dispatched while the device works on the first one's update.
    clock.host = 10
    timer.start()
    timer.record("prefix", ReadyAt(clock, 15))
    assert timer.finish(ReadyAt(clock, 16)).result(60) == {"step_time": 3.5, "time/prefix": 2.5}
    clock.host = 40  # after an evaluation
    timer.restart()
    timer.record("prefix", ReadyAt(clock, 41))
    assert timer.finish(ReadyAt(clock, 42)).result(60) == {"step_time": 2, "time/prefix": 1}
    timer.close()


def test_seconds_of_the_host_belong_to_the_step_in_progress(clock):
    timer = StepTimer()

    def score(seconds):
        clock.host += seconds
        return "scores"

    assert timer.call("score", score, 2) == "scores"
    assert timer.finish(1.0).result(60)["time/score"] == 2
    assert "time/score" not in timer.finish(1.0).result(60)
    timer.close()


def test_a_failed_program_is_an_error_of_the_step():
    class Failed:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    timer = StepTimer()
    timer.record("decode", Failed())
    with pytest.raises(RuntimeError, match="out of memory"):
        timer.finish(1.0).result(60)
    timer.close()


def test_compilations_are_counted_until_the_counter_is_closed():
    ready = []
    counter = CompilationCounter(lambda: ready.append("a program"))
    function = jax.jit(lambda x: x * 2 + 1)
    arguments = [np.ones(n, np.float32) for n in (3, 4, 5)]
    counter.take()
    ready.clear()
    function(arguments[0]), function(arguments[0])
    assert counter.take() == len(ready) == 1
    assert counter.take() == 0
    function(arguments[1])
    assert counter.take() == 1
    counter.close()
    function(arguments[2])
    assert counter.take() == 0


def test_compilations_are_told_every_ten_seconds():
    lines, now = [], 0.0
    with log_compilations(lines.append, lambda: now) as compiled:
        for now in (4.0, 11.0, 15.0, 30.0):  # noqa: B007
            jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 1.0)
        assert compiled() == "4 programs in 30 s"
    assert lines == ["compiling; 2 programs in 11 s so far", "compiling; 4 programs in 30 s so far"]


def test_ctrl_c_ends_a_program_that_compiles_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    try:
        with log_compilations(print):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        with ThreadPoolExecutor(1) as executor, ended_by_ctrl_c():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            executor.submit(ended_by_ctrl_c().__enter__).result()  # a thread may not change a handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_peak_of_memory_is_that_of_the_fullest_device_of_this_host():
    def device(peak, host=0):
        stats = None if peak is None else {"peak_bytes_in_use": peak, "bytes_in_use": 7}
        return SimpleNamespace(process_index=host, memory_stats=lambda: stats)

    assert peak_memory_gb([device(3 * 10**9), device(5 * 10**9), device(9 * 10**9, host=1)]) == 5.0
    assert peak_memory_gb([device(None)]) is None
    assert peak_memory_gb(jax.devices()) is None


def test_tokens_per_second_of_a_step_of_sampling_and_of_the_update():
    metrics = {"num_step_tokens": 300.0, "num_completion_tokens": 120.0}
    seconds = {"step_time": 10.0, "time/prefix": 1.0, "time/decode": 3.0, "time/update": 4.0}
    assert throughput(metrics, 2.0, seconds) == {
        "tokens_per_second": 30.0,
        "tokens_per_second/sampled": 30.0,
        "tokens_per_second/trained": 150.0,
    }
    assert throughput(metrics, 1.0, {"step_time": 10.0}) == {"tokens_per_second": 30.0}


# ---------------------------------------------------------------------------------------------------------------- MFU


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_attached_devices_are_found_in_the_table(kind, name):
    assert device_spec(SimpleNamespace(device_kind=kind)) is DEVICES.get(name)


def stage_of(method: Method, remat: Remat = Remat.NONE, devices: int = 1) -> StagePrograms:
    """The programs of a stage of the tiny model, with prompts of text alone."""
    config = Config(
        method=method,
        stages=[Stage("one", [Source("rows.jsonl")], steps=1)],
        data=Data(batch_size=4, prompt_lengths=(64,), completion_lengths=(16,), slots=(1,)),
        sampling=Sampling(group_size=2, max_new_tokens=16, segment=16, ladder=()),
    )
    model = tiny.model_of(remat=remat, mesh=make_mesh(data=devices, devices=jax.devices()[:devices]))
    optimizer = stage_optimizer(config, 0)
    update = update_programs(model, optimizer.transform, optimizer.settings, gradient_function(config))
    spec = SimpleNamespace(config=model.config, max_pixels=28 * 28)
    shapes = config_buckets(config, spec, layout_on(config, model.mesh))
    state = abstract_state(model, optimizer.transform)
    return StagePrograms(config, spec, (1,), model, state, update, shapes, held_out_prompts=8)


BUCKET = Bucket(BatchShape(64, 0, 0), 16)


def test_a_decoded_token_costs_the_products_with_all_weights_and_keys():
    _, per_token = mfu.bucket_flops(stage_of(Method.GRPO), BUCKET)
    c = tiny.CONFIG
    heads, kv_heads = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = 2 * c.hidden_size * heads + 2 * c.hidden_size * kv_heads + 3 * c.hidden_size * c.intermediate_size
    attention = 2 * heads * (64 + 16)
    assert per_token == 2 * (c.num_hidden_layers * (layer + attention) + c.hidden_size * c.vocab_size)


def test_recomputation_is_no_work_of_the_model():
    plain, remat = (stage_of(Method.SFT, policy) for policy in (Remat.NONE, Remat.BLOCK))
    assert mfu.bucket_flops(plain, BUCKET) == mfu.bucket_flops(remat, BUCKET)
    planned = [
        sum(
            matmul_flops(program.function.trace(*program.arguments).jaxpr.jaxpr)
            for program in stage.step(BUCKET)
            if program.name == "gradient"
        )
        for stage in (plain, remat)
    ]
    assert planned[1] > 1.2 * planned[0] == 1.2 * mfu.bucket_flops(plain, BUCKET)[0]


def test_mfu_is_a_fraction_of_the_peak_of_all_devices(monkeypatch):
    stage = stage_of(Method.GRPO, devices=2)
    assert mfu.make_mfu(stage) is None  # no peak of a CPU is known
    monkeypatch.setattr(mfu, "device_spec", lambda device: DEVICES["h100"])
    fixed, per_token = mfu.bucket_flops(stage, BUCKET)
    other = Bucket(BatchShape(64, 0, 0), 8)
    of_other, _ = mfu.bucket_flops(stage, other)
    measure = mfu.make_mfu(stage)
    assert measure is not None
    assert measure([BUCKET], 100, 2.0) == pytest.approx((fixed + 100 * per_token) / (2.0 * 2 * 989e12))
    mixed = (fixed + of_other) / 2  # microbatches of two shapes
    assert measure([BUCKET, other], 0, 2.0) == pytest.approx(mixed / (2.0 * 2 * 989e12))


# ----------------------------------------------------------------------------------------------------- a run, a trace


@pytest.fixture(scope="module")
def waits() -> list[int]:
    return []


@pytest.fixture(scope="module")
def traced_run(checkpoint, rows, tmp_path_factory, waits):  # noqa: F811
    """Three steps, of which the second is traced; `waits` counts where the training loop waits for the devices."""
    config = replace(config_of(checkpoint, rows, steps=3), logging=Logging(1, 2, tensorboard=True, rollouts_every=0))
    workdir, block_until_ready = tmp_path_factory.mktemp("traced"), jax.block_until_ready

    def counting(results):
        if threading.current_thread() is threading.main_thread():
            waits.append(1)
        return block_until_ready(results)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "block_until_ready", counting)
        trainer.run(config, workdir, profile=ProfileSteps(2, 2))
    return workdir


@pytest.mark.slow
def test_a_run_tells_what_its_steps_cost(traced_run):
    lines = read_metrics(traced_run / "metrics.jsonl")
    phases = ("time/prefix", "time/decode", "time/reference", "time/update")
    names = ("step_time", *phases, "time/score", "tokens_per_second", "tokens_per_second/sampled")
    names = (*names, "tokens_per_second/trained", "compiles", "padding/prompt_waste", "padding/completion_waste")
    for line in lines:
        assert np.isfinite([line[name] for name in (*names, "padding/patch_waste")]).all()
        assert all(line[name] > 0 for name in (*phases, "time/score"))
        assert sum(line[name] for name in phases) <= line["step_time"]
        assert line["num_step_tokens"] / line["step_time"] == pytest.approx(line["tokens_per_second"])
        assert not {"mfu", "memory/peak_gb"} & line.keys()  # CPUs report neither
    assert lines[0]["compiles"] > 0
    assert [line["compiles"] for line in lines[1:]] == [0, 0]
    assert ["time/save" in line for line in lines] == [False, False, True]  # of the checkpoint after step 2
    assert list((traced_run / "tensorboard").iterdir())


@pytest.mark.slow
def test_the_page_has_the_metrics_of_a_run(traced_run):
    page = Path("docs/metrics.md").read_text().partition("## One by one")[2].partition("## Reasons")[0]
    lines = re.findall(r"^\| (`.*?) \| (.*?) \|", page, re.M)
    written = {name for line in read_metrics(traced_run / "metrics.jsonl") for name in line}

    def written_as(documented: str) -> set[str]:
        return {name for name in written if re.fullmatch(re.sub("[A-Z]+", ".+", re.escape(documented)), name)}

    documented = {name: meaning for names, meaning in lines for name in re.findall(r"`([^`]+)`", names)}
    assert written == set().union(*map(written_as, documented))
    for name, meaning in documented.items():
        assert (
            written_as(name)
            or re.search("only (if|where|with)|absent|of evaluated steps", meaning)
            or "held_out" in name
        ), name


@pytest.mark.slow
def test_only_a_trace_makes_the_loop_wait(traced_run, waits):
    assert sum(waits) == 2  # before the traced step, and after it


@pytest.mark.slow
def test_a_trace_is_written_for_xprof_and_perfetto(traced_run):
    files = [path.name for path in (traced_run / "profile" / "plugins" / "profile").glob("*/*")]
    assert any(name.endswith(".xplane.pb") for name in files) and any(name.endswith(".trace.json.gz") for name in files)


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "0:2", "3:2", "a:b", "1:2:3", "-1:2", " 1:2", "٣:٤"])
def test_malformed_steps_to_trace_are_refused(text):
    with pytest.raises(ValueError, match="FROM:TO"):
        parse_profile_steps(text)
    assert parse_profile_steps("2:10") == ProfileSteps(2, 10)


def test_the_program_refuses_malformed_steps_in_one_line():
    command = [sys.executable, "-m", "currreft_jax.train", "--config=configs/sft.py:tiny", "--profile=3:2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch("train: --profile=3:2: it takes FROM:TO.*\n", done.stderr)


def test_a_stage_without_the_steps_to_trace_says_so(tmp_path):
    messages = []
    with StepProfiler(tmp_path, ProfileSteps(2, 3), messages.append) as profiler:
        profiler.before_step(4, ())  # a resumed run
        profiler.after_step(4, ())
    assert messages == ["none of the steps 2 to 3 was taken; there is no trace"]
    assert not list(tmp_path.iterdir())


def test_a_trace_ends_with_its_stage(tmp_path):
    messages = []
    with StepProfiler(tmp_path, ProfileSteps(2, 9), messages.append) as profiler:
        profiler.before_step(5, ())
        jax.block_until_ready(jax.numpy.ones(3) + 1)
        profiler.after_step(5, ())
    assert len(messages) == 1 and f"trace in {tmp_path}/profile" in messages[0]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_after_the_last_step_is_refused(checkpoint, rows, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="profile begins at step 4, and no stage has more than 3"):
        trainer.run(config_of(checkpoint, rows, steps=3), tmp_path / "run", profile=ProfileSteps(4, 4))
    assert not (tmp_path / "run").exists()
