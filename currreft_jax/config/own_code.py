"""Reward functions and prompt templates of one's own, imported by the name `package.module:name`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from currreft_jax.config.files import describe_error
from currreft_jax.config.names import nearest


def import_module_of(name: str) -> dict[str, Any]:
    """Imports the module of a `package.module:name`, and returns what it defines.

    Raises:
        ValueError: it cannot be imported; the message names what was meant.
    """
    module, _, attribute = name.partition(":")
    if module.endswith(".py") or "/" in module:
        raise ValueError(f"{module} is a path: {_name_of_path(Path(module), attribute)}")
    try:
        return vars(import_module(module))
    except Exception as error:  # the module is its user's program: whatever is wrong in it is reported with its line
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            problem = f"{error}{_name_nearest(module, attribute) or _place_to_start(str(error.name), module)}"
        else:
            problem = describe_error(Path(f"{module.replace('.', '/')}.py"), error)
        raise ValueError(f"{module} cannot be imported: {problem}") from error


def _name_of_path(path: Path, attribute: str) -> str:
    """Says how to name what a file defines; of one outside the current folder its own folder has to be known, too."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    if path.is_absolute() or ".." in path.parts:
        return f"add {path.resolve().parent} to PYTHONPATH and write {path.stem}:{attribute}"
    return f"write {'.'.join(path.with_suffix('').parts)}:{attribute}"


def _name_nearest(module: str, attribute: str) -> str:
    """Names the modules of the same folder that resemble a missing one."""
    *packages, last = module.split(".")
    found = nearest(last, sorted({file.stem for file in Path(*packages).glob("*.py")} - {last}))
    names = [f"{'.'.join([*packages, one])}:{attribute}" for one in found]
    return f"; nearest: {', '.join(names)}" if names else ""


def _place_to_start(missing: str, module: str) -> str:
    """Says where the first part of a module's name is looked for, if that is the missing one."""
    if missing != module.partition(".")[0]:
        return ""
    return f"; start in the folder that holds {missing}, or add that folder to PYTHONPATH"
