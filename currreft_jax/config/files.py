"""Config files: Python with a function `get_config(variant)`, and their errors in one line."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from pathlib import Path
from typing import Any, TypeVar

import currreft_jax.config as settings
from currreft_jax.config.names import nearest, unknown_setting
from currreft_jax.config.training import Config

Settings = TypeVar("Settings")

_MODULE = "config_file"
# What Python says of a name that a class of settings does not have.
_UNKNOWN = re.compile(r"'?(\w+)(?:' object has no attribute|\.__init__\(\) got an unexpected keyword argument) '(\w+)'")


def load_config(text: str, kind: type[Settings] = Config) -> Settings:
    """Loads a config.

    Args:
        text: FILE or FILE:VARIANT.
        kind: class of the settings that the file makes.

    Raises:
        ValueError: no such file or variant, or a mistake in the file, with its line.
    """
    file, *variant = text.split(":", 1)
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file} in {Path.cwd()}{_other_files(path)}")
    if path.suffix != ".py":
        raise ValueError(f"{file} is no Python file: a config file's name ends in .py")
    try:
        module = _load_module(path)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path} has no function get_config")
        config = module.get_config(*variant)
    except Exception as error:  # the file is its user's program: whatever is wrong in it is reported with its line
        raise ValueError(_describe_error(path, error)) from error
    if not isinstance(config, kind):
        raise ValueError(
            f"{path}: get_config returned a {type(config).__name__}, not the {kind.__name__} of this program"
        )
    return config


def _load_module(path: Path) -> Any:
    root = path.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    if root != path.resolve().parent and str(root) not in sys.path:
        sys.path.append(str(root))  # a file of a package may import the package, from whatever folder it is named
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None and spec.loader is not None  # as of every name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _other_files(path: Path) -> str:
    """Names the files that may have been meant."""
    marker = b"def get_config("
    files = sorted(file.name for file in path.parent.glob("*.py") if marker in file.read_bytes())
    names = nearest(path.name, files)
    if names:
        return f"; nearest: {', '.join(str(path.parent / name) for name in names)}"
    return f"; {path.parent}/ has {', '.join(files)}" if files else ""


def _describe_error(path: Path, error: Exception) -> str:
    """Describes an exception of a config file in one line."""
    if type(error) is ValueError:  # raised by the file about its variant
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    where = f"{path}:{lines[-1]}" if lines else str(path)
    unknown = _UNKNOWN.match(str(error))
    if unknown and unknown[1] in settings.__all__:
        return f"{where}: {unknown_setting(vars(settings)[unknown[1]], unknown[2], unknown[1])}"
    message = f"{where}: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        return f"{message}: add the folder that holds {error.name} to PYTHONPATH"
    return message
