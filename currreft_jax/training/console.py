"""Console messages of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from currreft_jax.runtime.distributed import is_main


def say(text: str) -> None:
    """Prints a line to standard error, above a progress bar, once for all hosts."""
    if is_main():
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"train: {text}", file=sys.stderr)


@contextmanager
def timed(text: str) -> Iterator[None]:
    """Prints a line to standard error, once for all hosts, and at its end the seconds that the block took."""
    begun = time.perf_counter()
    if is_main():
        print(f"train: {text} …", end="", file=sys.stderr, flush=True)
    yield
    if is_main():
        print(f" {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
