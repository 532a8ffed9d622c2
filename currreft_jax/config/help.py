"""The text of `--help`: a program's flags, the configs and their variants, and every setting."""

from __future__ import annotations

import ast
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from absl import flags

from currreft_jax.config.file_flags import takes_files
from currreft_jax.config.files import config_folders, read_variants
from currreft_jax.config.reference import Setting, SettingsGroup, setting_groups

_PACKAGE = __name__.partition(".")[0]
_MOST_MEMBERS = 4  # items of a list that are named one by one
_WIDTH = 100  # where the terminal's is unknown


def help_text(config: Any, text: str) -> str:
    """Returns the text of `--help`.

    Args:
        config: the settings to list.
        text: FILE or FILE:VARIANT that they are of; empty for defaults.
    """
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:", *_flag_lines(), ""]
    if text:
        file = text.partition(":")[0]
        if variants := read_variants(text):
            lines += [f"Variants, --config={file}:VARIANT:", *_pairs(variants), ""]
        lines.append(f"Settings of {text}, each a flag:")
    else:
        if configs := _configs(type(config)):
            lines += ["Configs; --config=FILE --help lists the variants and the settings of one:", *_pairs(configs), ""]
        lines.append("Settings and their defaults, each a flag:")
    groups = setting_groups(config) if text else [replace(group, members=()) for group in setting_groups(config)]
    return "\n".join([*lines, *(line for group in groups for line in _group_lines(group))])


def _flag_lines() -> Iterator[str]:
    """Yields the flags that the program defines itself; those of libraries are left to `--helpfull`."""
    modules = flags.FLAGS.flags_by_module_dict()
    own = {flag.name: flag for name in modules if name == sys.argv[0] or _is_own(name) for flag in modules[name]}
    for name, flag in sorted(own.items()):
        value = " FILES" if takes_files(name) else "" if flag.boolean else "=VALUE"
        default = f" (default {flag.default})" if flag.default and isinstance(flag.default, int | float | str) else ""
        text = flag.help.partition(";\n    repeat this option")[0]  # absl's, of flags that take files
        yield from _entry(f"--{name}{value}", f"{text}{default}")


def _is_own(module: str) -> bool:
    return module == "__main__" or module.partition(".")[0] == _PACKAGE


def _configs(kind: type) -> dict[str, str]:
    """Returns the first line of each config's docstring by its path, for configs of one program."""
    for folder in config_folders():
        files = {file: ast.parse(file.read_bytes()) for file in sorted(folder.glob("*.py"))}
        return {
            str(file): (ast.get_docstring(tree) or "").partition("\n")[0]
            for file, tree in files.items()
            if any(
                isinstance(node, ast.FunctionDef)
                and node.name == "get_config"
                and node.returns is not None
                and ast.unparse(node.returns) == kind.__name__
                for node in tree.body
            )
        }
    return {}


def _group_lines(group: SettingsGroup) -> list[str]:
    place = group.members[0] if len(group.members) == 1 else group.place
    lines = ["", *_wrap(f"{place}: {group.summary}{_order(group.members)}", "")]
    for setting in group.settings:
        path = setting.path.replace(group.place, place, 1)
        lines += _entry(_assignment(path, setting), f"{setting.meaning.rstrip('.')}. Takes {setting.type_text}.")
    return lines


def _order(members: Sequence[str]) -> str:
    """Says of which items several values are."""
    if len(members) < 2:
        return ""
    shown = members if len(members) <= _MOST_MEMBERS else (members[0], members[1], "…", members[-1])
    return f" A | B: the values of {', '.join(shown)}, in this order; one value is that of all."


def _assignment(path: str, setting: Setting) -> str:
    default = f"  (default {setting.default})" if setting.values != (setting.default,) else ""
    return f"--{path}={' | '.join(setting.values)}{default}"


def _pairs(texts: dict[str, str]) -> list[str]:
    width = max(map(len, texts))
    return [line for name, text in texts.items() for line in _wrap(text, " " * (width + 4), f"  {name:{width}}  ")]


def _entry(name: str, text: str) -> Sequence[str]:
    return [f"  {name}", *_wrap(text, " " * 8)]


def _wrap(text: str, indent: str, first: str | None = None) -> list[str]:
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    first = indent if first is None else first
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False) or [first]
