"""Names of settings: the type at a path such as `stages[0].steps`, and the nearest right names for a misspelt one."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from currreft_jax.config.checks import describe, field_types
from currreft_jax.config.data import Source

_PART = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>-?\d+)\]")


def setting_type(config: Any, path: str) -> Any:
    """Returns the type of a setting.

    Args:
        config: the settings, of any program; its lists and dictionaries have the items that they have.
        path: names and indices, such as `stages[0].steps` or `rewards.weights.format`.

    Raises:
        ValueError: there is no such setting; the message names its place and what to write instead.
    """
    value: Any = config
    kind: Any = type(config)
    place, rest = "config", f".{path}"
    while rest:
        if get_origin(kind) is dict:
            return _item_type(value, kind, rest, place)
        part = _PART.match(rest)
        name, index = part.groups() if part else (None, None)
        if dataclasses.is_dataclass(value) and name:
            if name not in field_types(type(value)):
                raise ValueError(unknown_setting(type(value), name, place, config))
            kind, value, place = field_types(type(value))[name], getattr(value, name), f"{place}.{name}"
        elif isinstance(value, list) and index:
            if not -len(value) <= int(index) < len(value):
                indices = f"has only {', '.join(f'[{i}]' for i in range(len(value)))}" if value else "is empty"
                raise ValueError(f"{place} {indices}; {_how_to_extend(kind, value, place)}")
            (kind,), value, place = get_args(kind), value[int(index)], f"{place}[{index}]"
        else:
            first = f", such as {place}[0]" if isinstance(value, list) else ""
            raise ValueError(f"there is no {place}{rest}: {place} takes {describe(kind)}{first}")
        rest = rest[part.end() :] if part else ""
    return kind


def unknown_setting(owner: type, name: str, place: str, config: Any = None) -> str:
    """Describes a misspelt setting: its place, the nearest right names, and how to read about all of them.

    Args:
        owner: the class that lacks the name.
        name: the misspelt name.
        place: where it was written, such as `config.optimizer`.
        config: settings to search for the name, and if no name of `owner` is near; none where None.
    """
    elsewhere = nearest_settings(name, config) if config else []
    misplaced = [path for path in elsewhere if path.endswith(f".{name}")]
    names = misplaced or nearest(name, field_types(owner)) or elsewhere
    hint = f"nearest: {', '.join(names)}" if names else f"it has {', '.join(field_types(owner))}"
    return f"{place} has no setting {name}; {hint} (--help lists all)"


def refuse_unknown_variant(variant: str, variants: Iterable[str]) -> None:
    """Raises ValueError for a variant that a config does not have, naming the nearest one, or all of them."""
    if variant not in variants:
        names = nearest(variant, variants)
        hint = f"nearest: {', '.join(names)}" if names else f"there are {', '.join(variants)}"
        raise ValueError(f"no variant {variant!r}; {hint}")


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Returns up to three names that resemble a misspelt one, the nearest first."""
    return difflib.get_close_matches(name, list(names))


def nearest_settings(name: str, config: Any) -> list[str]:
    """Returns up to three settings whose last name resembles a misspelt one, such as `config.stages[0].steps`."""
    paths = list(_setting_paths(config, "config"))
    last_names = nearest(name, {path.rpartition(".")[2] for path in paths})
    return [path for last in last_names for path in paths if path.rpartition(".")[2] == last][:3]


def _setting_paths(value: Any, place: str) -> Iterator[str]:
    if dataclasses.is_dataclass(value):
        for name in field_types(type(value)):  # pyright: ignore[reportArgumentType]
            yield from _setting_paths(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _setting_paths(item, f"{place}[{index}]")
    else:
        yield place


def _item_type(items: dict[str, Any], kind: Any, rest: str, place: str) -> Any:
    """Returns the type of a dictionary's items. A key may hold dots and colons, and may stand in brackets."""
    key = rest.removeprefix(".").strip("[]\"'")
    if key not in items:
        names = nearest(key, items)
        hint = f"nearest: {', '.join(names)}" if names else f"it has {', '.join(items) or 'none yet'}"
        raise ValueError(f"{place} has no {key}; {hint}; {_how_to_extend(kind, items, place, key)}")
    if not key.isidentifier() and not rest.startswith("["):
        raise ValueError(f"{place} has it; a name with such characters is quoted: '--{place}[\"{key}\"]=VALUE'")
    return get_args(kind)[1]


def _how_to_extend(kind: Any, value: Any, place: str, key: str = "NAME") -> str:
    """Says how to add an item to a list or a dictionary of the settings."""
    if get_origin(kind) is dict:
        new, python = ("1", "1") if get_args(kind)[1] is float else ("LABEL", '"LABEL"')
        flag = ",".join(f"{name}={item}" for name, item in [*value.items(), (key, new)] if item)
        return f'to add it, write --{place}={flag}, or {place}["{key}"] = {python} in the config\'s file'
    if get_args(kind) == (Source,):
        return f"to change their number, write --{place}=FILE,FILE, or Source(FILE) for each in the config's file"
    return "their number is set in the config's file"
