"""Flags that take files: `--rows train/*.jsonl`, expanded by a shell or by the program, one flag or several."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from currreft_jax.config.missing import name_nearest

_defined: set[str] = set()


def define_files(name: str, text: str) -> None:
    """Defines a flag that takes files; its value is a list of texts for `expand_files`."""
    flags.DEFINE_multi_string(name, [], text)
    _defined.add(name)


def takes_files(name: str) -> bool:
    """Returns true for a flag that `define_files` has defined."""
    return name in _defined


def gather_files(arguments: Sequence[str]) -> list[str]:
    """Writes a flag before each of its files: `--rows a b` becomes `--rows=a --rows=b`.

    An underscore in the flag's name counts as a hyphen.

    Raises:
        ValueError: no file follows a flag that takes files.
    """
    return list(_gathered(arguments))


def _gathered(arguments: Sequence[str]) -> Iterator[str]:
    name, is_empty = "", False
    for argument in [*arguments, "-"]:
        if not argument.startswith("-"):
            yield f"--{name}={argument}" if name else argument
            is_empty = False
            continue
        if is_empty:
            raise ValueError(f"--{name} names no files")
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-").replace("_", "-")
        name = name if takes_files(name) else ""
        is_empty = bool(name) and not equals
        if name and equals:
            yield f"--{name}={value}"
        elif not name and argument != "-":
            yield argument


def expand_files(texts: Sequence[str]) -> list[str]:
    """Returns the files that texts name: a path, several with commas between them, or a pattern, `train/*.jsonl`.

    Raises:
        ValueError: no file matches a pattern.
    """
    files: list[str] = []
    for text in texts:
        for part in [text] if Path(text).exists() else text.split(","):
            path = str(Path(part.strip()).expanduser())
            if Path(path).exists() or not glob.has_magic(path):
                files.append(path)
                continue
            found = sorted(glob.glob(path, recursive=True))
            if not found:
                raise ValueError(f"no file matches {path} in {Path.cwd()}{name_nearest(path)}")
            files += found
    return list(dict.fromkeys(files))


def name_files(files: Sequence[str]) -> list[str]:
    """Names files: by their stems, or by their whole paths where two have the same."""
    stems = [Path(file).stem for file in files]
    return [
        stem if stems.count(stem) == 1 else "-".join(part for part in Path(file).with_suffix("").parts if part != "/")
        for file, stem in zip(files, stems, strict=True)
    ]
