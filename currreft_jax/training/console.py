"""Console messages of a training run."""

from __future__ import annotations

import sys

from currreft_jax.runtime.distributed import is_main


def say(text: str) -> None:
    """Prints a line to standard error, once for all hosts."""
    if is_main():
        print(f"train: {text}", file=sys.stderr)
