"""Hashes of files. Loads no JAX."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_files(*paths: Path, size: int = 8) -> str:
    """Hashes names and contents of files, in order; `missing` if one of them is not there.

    Args:
        paths: the files.
        size: bytes of the hash.
    """
    digest = hashlib.blake2b(digest_size=size)
    for path in paths:
        if not path.is_file():
            return "missing"
        digest.update(f"{path.name}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
