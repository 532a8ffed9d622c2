"""Reward functions and prompt templates of one's own, imported by the name `package.module:name`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from currreft_jax.config.names import nearest


def import_module_of(name: str) -> dict[str, Any]:
    """Imports the module of a `package.module:name`, and returns what it defines.

    Raises:
        ValueError: it cannot be imported; the message names what was meant.
    """
    module, _, attribute = name.partition(":")
    path = module.removesuffix(".py").removeprefix("./")
    if path != module or "/" in module:
        raise ValueError(f"{module} is a path: write {path.replace('/', '.')}:{attribute}")
    try:
        return vars(import_module(module))
    except ImportError as error:
        raise ValueError(f"{module} cannot be imported: {error}{_name_nearest(module, attribute)}") from error


def _name_nearest(module: str, attribute: str) -> str:
    """Names the modules of the same folder that resemble a missing one."""
    *packages, last = module.split(".")
    found = nearest(last, sorted({file.stem for file in Path(*packages).glob("*.py")} - {last}))
    names = [f"{'.'.join([*packages, one])}:{attribute}" for one in found]
    return f"; nearest: {', '.join(names)}" if names else ""
