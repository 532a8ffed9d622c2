"""JAX's persistent compilation cache, on by default: a program that starts again loads what it has compiled before."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; set but empty, it turns the cache off


def enable_compilation_cache() -> None:
    """Turns the cache on in `default_folder()`, unless the environment names another folder or none.

    Called by every program that compiles, before its first compilation. If the folder cannot be written, a line says
    so, and the program runs without a cache.
    """
    if VARIABLE in os.environ:
        return
    try:
        folder = default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
    except (OSError, RuntimeError) as error:  # a RuntimeError if the user has no home
        print(f"no compilation cache ({error}): set {VARIABLE} to a folder that can be written", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_folder() -> Path:
    """Returns `currreft_jax/xla/PROCESSOR` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    XLA compiles for the host's processor, which JAX's keys do not name: machines that share a home must not load each
    other's programs unless their processors are alike.

    Raises:
        RuntimeError: the home of the user is unknown.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"  # the standard ignores relative paths
    return base / "currreft_jax" / "xla" / _processor()


def _processor() -> str:
    """Names the kind of processor, by its architecture and a hash of its features."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.blake2b(features.encode(), digest_size=4).hexdigest()}"
