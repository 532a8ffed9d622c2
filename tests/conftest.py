"""The suite runs on eight simulated CPU devices, with exact products."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the suite's time is LLVM's: without optimizations and fused loops it is half as long. The oracles keep them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the environment
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and version("jaxlib") < "0.13":  # unknown flags are fatal
        _UNFUSED = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ["XLA_FLAGS"] = f"{_UNFUSED} {os.environ.get('XLA_FLAGS', '')}"
    # Tests, workers and the processes of tests compile the same small programs: a cache of this run compiles each once.
    _CACHE = tempfile.TemporaryDirectory(prefix="currreft-jax-cache-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from currreft_jax.rewards import MathsPool

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Compilation makes the first example slow; a fixed seed keeps a red test red.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("suite")

ORACLE = Path(__file__).parent / "oracle"
collect_ignore = [] if find_spec("torch") else ["oracle"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ORACLE in item.path.parents:
            item.add_marker(pytest.mark.oracle)


@pytest.fixture(scope="module", autouse=True)
def free_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: each is mapped, and a process may have only so many mappings (65,530)."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in Hugging Face's layout, fp32, with tokenizer."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("checkpoints") / "tied"
    tiny.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def pool() -> Iterator[MathsPool]:
    from currreft_jax.config import Maths
    from currreft_jax.rewards import MathsPool

    with MathsPool(Maths(workers=1)) as pool:
        yield pool


@pytest.fixture
def run_kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets CPUs run attention's kernels: cuDNN's call by XLA, splash attention by Pallas' interpreter."""
    from currreft_jax.models import flash

    attend, make = jax.nn.dot_product_attention, flash.splash.make_splash_mqa_single_device
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *args, implementation, **kwargs: attend(*args, **kwargs)
    )
    monkeypatch.setattr(flash.splash, "make_splash_mqa_single_device", partial(make, interpret=True))
    flash._compiles.cache_clear()
    yield
    flash._compiles.cache_clear()
