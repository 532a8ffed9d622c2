"""Paths that programs write to."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of one slash: a `Path` drops the other


def local_path(path: str | Path) -> Path:
    """Returns the path of a file or folder to write.

    Raises:
        ValueError: it is the address of something elsewhere, such as gs://bucket/run.
    """
    if _ADDRESS.match(str(path)):
        raise ValueError(
            f"{path} is not a local path: write to a folder of this machine or of a mounted bucket (gcsfuse), or copy"
            " the output there afterwards (gcloud storage cp -r)"
        )
    return Path(path)


def output_path(text: str) -> Path:
    """Parses an option of argparse that names a file or folder to write."""
    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
