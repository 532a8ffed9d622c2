"""Write docs/settings.md from the docstrings and defaults of the settings.

python -m tools.settings_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from currreft_jax.config import Config, Evaluation, Rejection
from currreft_jax.config.reference import SettingsGroup, setting_groups

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
_INTRODUCTION = """\
# Settings

Every setting of a config is a flag, `--config.NAME=VALUE`, and an attribute in the config's file. `--help` of a program
prints this list, and with `--config=FILE:VARIANT` the values of that config, and its variants. A misspelt setting, or a
value that it does not take, ends the program with one line.

As flags, texts are written as they are, numbers as in Python, members of an enumeration by their names, tuples as
`A,B`, a list of files as `FILE,FILE`, a dictionary as `NAME=VALUE,NAME=VALUE`; `()` and `[]` are empty. `[N]` is the
index of an item, from 0; zsh needs quotes around brackets: `'--config.stages[0].steps=80'`. A list of stages is
written in a config's file ([configs of your own](own_config.md)).

`python -m tools.settings_page` writes this page from the code.
"""
_PROGRAMS = {"train and plan": Config(), "evaluate": Evaluation(), "reject": Rejection()}


def main() -> None:
    """Writes the page."""
    PAGE.write_text(settings_page(), "utf-8")


def settings_page() -> str:
    """Returns the page: a section for each program, in it a table for each class whose defaults no table has yet."""
    lines = [_INTRODUCTION]
    tables: dict[Any, str] = {}
    for program, config in _PROGRAMS.items():
        lines.append(f"## Of {program}\n")
        for group in setting_groups(config):
            content = group.owner, tuple(setting.default for setting in group.settings)
            if content in tables:
                lines.append(f"`{group.place}`: {tables[content]}.\n")
            else:
                tables[content] = f"as `{group.place}` of {program}"
                lines += _table(group)
    return "\n".join(lines).rstrip() + "\n"


def _table(group: SettingsGroup) -> Iterator[str]:
    yield f"### `{group.place}`\n"
    yield f"{group.summary}\n"
    yield "| setting | default | takes | meaning |"
    yield "|---|---|---|---|"
    for setting in group.settings:
        name = setting.path.removeprefix(f"{group.place}.")
        meaning = setting.meaning.replace("|", "\\|")
        yield f"| `{name}` | `{setting.default}` | {setting.type_text} | {meaning} |"
    yield ""


if __name__ == "__main__":
    main()
