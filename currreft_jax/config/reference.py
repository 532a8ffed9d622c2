"""All settings of a program: place, type, default, values, and the meaning from the docstring of their class."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin

from currreft_jax.config.checks import describe, field_types

_ATTRIBUTE = re.compile(r" {4}(\w+): (.*)")
_INDEX = "[N]"  # of a list's item, in a place


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A setting.

    Attributes:
        path: place and name, such as `config.stages[N].steps`.
        kind: type.
        default: default, as a flag takes it.
        values: values in a config, one for each item of the lists in its path; one if all are equal.
        meaning: meaning, with that of an enum's members.
    """

    path: str
    kind: Any
    default: str
    values: tuple[str, ...]
    meaning: str

    @property
    def type_text(self) -> str:
        """The values that it takes."""
        optional = ", or None" if isinstance(self.kind, UnionType) else ""
        return describe(self.kind).partition(" (in Python")[0].partition(", whose settings")[0] + optional


@dataclasses.dataclass(frozen=True, slots=True)
class SettingsGroup:
    """The settings of one class at one place.

    Attributes:
        place: place, such as `config.stages[N]`.
        members: places of the items in a config, such as `config.stages[0]`, in the order of a setting's values; none
            if it has no such item.
        owner: class.
        summary: first paragraph of its docstring.
        settings: those that are not a group of their own.
    """

    place: str
    members: tuple[str, ...]
    owner: type
    summary: str
    settings: tuple[Setting, ...]


def setting_groups(config: Any) -> list[SettingsGroup]:
    """Lists all settings of a program by place; an empty list has the settings of one item with defaults.

    Args:
        config: settings of any program.
    """
    return list(_groups("config", {"config": config}, type(config)()))


def summary(owner: type) -> str:
    """Returns the first paragraph of a docstring in one line."""
    return " ".join(inspect.cleandoc(owner.__doc__ or "").partition("\n\n")[0].split())


@cache
def attribute_texts(owner: type) -> dict[str, str]:
    """Returns the text of each attribute of a class, from the section `Attributes` of its docstring."""
    section = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if attribute := _ATTRIBUTE.fullmatch(line):
            name, texts[attribute[1]] = attribute.groups()
        elif line.startswith(" " * 8):
            texts[name] += f" {line.strip()}"
        else:
            break
    return texts


def flag_text(value: Any) -> str:
    """Formats a value as a flag takes it."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return ",".join(f"{key}={flag_text(item)}" for key, item in value.items()) or "{}"
    if isinstance(value, tuple):
        return ",".join(map(flag_text, value)) or "()"
    if isinstance(value, list):
        return "[]" if not value else ",".join(map(_item_text, value))
    if dataclasses.is_dataclass(value):
        return "set"
    return "''" if value == "" else str(value)


def _item_text(item: Any) -> str:
    """Names an item of a list by the first text among its fields: a file, a name or a path."""
    values = [getattr(item, field) for field in field_types(type(item))]
    return next((value for value in values if isinstance(value, str)), type(item).__name__)


def _groups(place: str, items: Mapping[str, Any], default: Any) -> Iterator[SettingsGroup]:
    """Yields the groups of a place and of those below it.

    Args:
        place: place.
        items: settings there by their places.
        default: settings with all defaults.
    """
    owner = type(default)
    own, nested = [], []
    for name, kind in field_types(owner).items():
        values = {f"{member}.{name}": getattr(item, name) for member, item in items.items()}
        path = f"{place}.{name}"
        if dataclasses.is_dataclass(kind):
            nested.append((path, values, getattr(default, name)))
            continue
        if get_origin(kind) is list and dataclasses.is_dataclass(get_args(kind)[0]):
            item_kind: Any = get_args(kind)[0]
            members = {f"{at}[{i}]": member for at, value in values.items() for i, member in enumerate(value)}
            nested.append((f"{path}{_INDEX}", members, item_kind()))
        if isinstance(kind, UnionType) and dataclasses.is_dataclass(get_args(kind)[0]):
            item_kind = get_args(kind)[0]
            if members := {at: value for at, value in values.items() if value is not None}:
                nested.append((path, members, item_kind()))
        shown = list(values.values()) or [getattr(default, name)]
        own.append(_setting(path, kind, getattr(default, name), shown, attribute_texts(owner).get(name, "")))
    yield SettingsGroup(place, tuple(items), owner, summary(owner), tuple(own))
    for group in nested:
        yield from _groups(*group)


def _setting(path: str, kind: Any, default: Any, values: Sequence[Any], text: str) -> Setting:
    enum = next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Enum)), None)
    if enum:
        text = _with_members(text, enum)
    texts = tuple(map(flag_text, values))
    return Setting(path, kind, flag_text(default), texts[:1] if len(set(texts)) == 1 else texts, text)


def _with_members(text: str, enum: type[Enum]) -> str:
    """Appends what the members of an enum mean, and writes their names as flags do."""
    members = " ".join(inspect.cleandoc(enum.__doc__ or "").split())
    together = text if members.rstrip(".").lower() in text.lower() else f"{text} {members}"
    if text.rstrip(".").lower() in members.lower():
        together = members
    for member in enum:
        together = together.replace(f"`{member.name}`", f"`{member.name.lower()}`")
    return together
