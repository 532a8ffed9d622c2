"""Console messages of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from tqdm import tqdm

from currreft_jax.config.wording import plural
from currreft_jax.runtime.distributed import is_main
from currreft_jax.runtime.timing import CompilationCounter


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


@contextmanager
def answers_bar(total: int) -> Iterator[Callable[[int], object]]:
    """Shows how many answers to held-out rows there are, and how many programs were compiled for them.

    Once for all hosts. Yields the function that adds to the number of answers.
    """
    num_programs = 0

    def count_program() -> None:
        nonlocal num_programs
        num_programs += 1
        bar.set_postfix_str(f"{plural(num_programs, 'program')} compiled")

    with (
        tqdm(
            total=total,
            desc="answering held-out rows",
            unit=" answers",
            disable=not (total and is_main()),
            file=sys.stderr,
            mininterval=1,
            leave=False,
        ) as bar,
        closing(CompilationCounter(count_program)),
    ):
        yield bar.update
