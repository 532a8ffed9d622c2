"""Config files: Python with a function `get_config(variant)`, and their errors in one line."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import currreft_jax.config as settings
from currreft_jax.config.names import nearest, refuse_unknown_variant, unknown_setting
from currreft_jax.config.training import Config

Settings = TypeVar("Settings")

_MODULE = "config_file"
VARIANTS = "VARIANTS"  # of a config's file: what each variant is, by name
_PROGRAMS = {"Config": "train and plan", "Evaluation": "evaluate", "Rejection": "reject"}
_REPOSITORY = Path(__file__).parents[2]
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
    path, variant = _split(text)
    try:
        module = _load_module(path)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path} has no function get_config")
        if variant and VARIANTS in vars(module):
            refuse_unknown_variant(variant[0], vars(module)[VARIANTS])
        config = module.get_config(*variant)
    except Exception as error:  # the file is its user's program: whatever is wrong in it is reported with its line
        raise ValueError(describe_error(path, error)) from error
    if not isinstance(config, kind):
        program = _PROGRAMS.get(type(config).__name__)
        raise ValueError(
            f"{path}: get_config returned a {type(config).__name__}, not the {kind.__name__} of this program"
            f"{f'; it is a config of {program}' if program else ''}"
        )
    return config


def read_variants(text: str) -> dict[str, str]:
    """Returns what each variant of a config is, by name: `VARIANTS` of its file, or none.

    Raises:
        ValueError: no such file, or a mistake in it.
    """
    path, _ = _split(text)
    try:
        return vars(_load_module(path)).get(VARIANTS, {})
    except Exception as error:  # as in `load_config`
        raise ValueError(describe_error(path, error)) from error


def config_folders() -> list[Path]:
    """Lists the folders where configs are looked for: `configs` of the current folder and of the repository."""
    return [folder for folder in (Path("configs"), _REPOSITORY / "configs") if folder.is_dir()]


def _split(text: str) -> tuple[Path, list[str]]:
    """Splits FILE:VARIANT into the file, which must exist, and at most one variant."""
    file, *variant = text.split(":", 1)
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file} in {Path.cwd()}{_other_files(path)}")
    if path.suffix != ".py":
        raise ValueError(f"{file} is no Python file: a config file's name ends in .py")
    return path, variant


def _load_module(path: Path) -> Any:
    root = path.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    # A file imports its neighbours or its package, and the repository's configs, from whatever folder it is named.
    for folder in (root, _REPOSITORY):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None and spec.loader is not None  # as of every name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    return module


def _other_files(path: Path) -> str:
    """Names the files that may have been meant: of its folder, or else configs of the repository."""
    marker = b"def get_config("
    folders = dict.fromkeys([path.parent, *config_folders()])
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if marker in file.read_bytes()]
    for folder in folders:
        names = nearest(path.name, [file.name for file in files if file.parent == folder])
        if names:
            return f"; nearest: {', '.join(str(folder / name) for name in names)}"
    return f"; {files[0].parent}/ has {_names_in(files, files[0].parent)}" if files else ""


def _names_in(files: Sequence[Path], folder: Path) -> str:
    return ", ".join(file.name for file in files if file.parent == folder)


def describe_error(path: Path, error: Exception) -> str:
    """Describes an exception of a user's file in one line, which begins with file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    if type(error) is ValueError and _is_ours(frames[-1].filename):  # about a variant or a setting
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    # A mistake may stand in a neighbour that the file imports.
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve() or _is_users(frame.filename)]
    where = str(path)
    if own:
        file = Path(own[-1].filename)
        where = f"{path if file.resolve() == path.resolve() else file}:{own[-1].lineno}"
    unknown = _UNKNOWN.match(str(error))
    if unknown and unknown[1] in settings.__all__:
        return f"{where}: {unknown_setting(vars(settings)[unknown[1]], unknown[2], unknown[1])}"
    message = f"{where}: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        return f"{message}: add the folder that holds {error.name} to PYTHONPATH"
    return message


def _is_users(file: str) -> bool:
    """Says whether a file is neither Python's or a library's, nor ours."""
    path = Path(file).resolve()
    libraries = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return path.is_file() and not _is_ours(file) and not any(path.is_relative_to(folder) for folder in libraries)


def _is_ours(file: str) -> bool:
    """Says whether a file is the package's or one of the repository's configs."""
    path = Path(file).resolve()
    return any(path.is_relative_to(_REPOSITORY / name) for name in ("currreft_jax", "configs"))
