"""ms-swift's `objects`: the names and boxes that `<ref-object>` and `<bbox>` stand for in a conversation.

`"objects": {"ref": ["dog"], "bbox": [[x1, y1, x2, y2]], "bbox_type": "real"}`; each tag takes the next entry of its
list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from currreft_jax.data.fields import Fields

OBJECTS = "objects"
_LISTS = {"<ref-object>": "ref", "<bbox>": "bbox"}
_TAG = re.compile("|".join(_LISTS))
_EXPECTED = '{"ref": ["dog"], "bbox": [[x1, y1, x2, y2]]}'
_PIXELS, _FRACTIONS = "real", "norm1"  # values of bbox_type


def fill_tags(fields: Fields, turns_key: str, text_key: str) -> Fields:
    """Replaces `<ref-object>` by names and `<bbox>` by box fields, and `objects` by `boxes`, as our rows have them.

    Args:
        fields: a chat row; without `objects`, its texts may not have the tags.
        turns_key: key of the conversation.
        text_key: key of a turn's text.

    Raises:
        LineError: tags and lists do not match, or a box is a point or belongs to another image than the first.
    """
    turns = fields.keys[turns_key]
    if not isinstance(turns, list) or not all(_text(turn, text_key) is not None for turn in turns):
        return fields  # reported by whoever parses the turns
    texts = [turn[text_key] for turn in turns]
    if OBJECTS not in fields.keys:
        _refuse_tags(fields, texts)
        return fields
    names, corners, is_fraction = _read_objects(fields)
    for tag, entries in zip(_LISTS, (names, corners), strict=True):
        if (count := sum(text.count(tag) for text in texts)) != len(entries):
            fields.refuse(
                f'the messages have {count} {tag}, but "{OBJECTS}" has {len(entries)} {_LISTS[tag]}; write one for each'
            )
    values: dict[str, Iterator[str]] = {"<ref-object>": iter(names), "<bbox>": _box_fields(len(corners))}
    filled = [{**turn, text_key: _TAG.sub(lambda tag: next(values[tag[0]]), turn[text_key])} for turn in turns]
    keys = {key: value for key, value in fields.keys.items() if key != OBJECTS}
    frame = {"frame": [1, 1]} if is_fraction else {}
    return Fields({**keys, turns_key: filled, "boxes": corners, **frame}, fields.location)


def refuse_objects(fields: Fields, keys: Sequence[str]) -> None:
    """Refuses `objects` and their tags in a row that is no conversation.

    Raises:
        LineError: naming the key or the tag.
    """
    if OBJECTS in fields.keys:
        fields.refuse(
            f'"{OBJECTS}" is read in conversations alone; write the boxes in "boxes" and {{box:0}} in the texts'
        )
    _refuse_tags(fields, [json.dumps(fields.keys.get(key), ensure_ascii=False, default=str) for key in keys])


def _read_objects(fields: Fields) -> tuple[list[str], list[Any], bool]:
    """Returns the names, the boxes, and whether these are fractions of the image."""
    objects = fields.take(OBJECTS, dict, _EXPECTED)
    names, corners = (objects.get(key) or [] for key in _LISTS.values())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fields.refuse_value(OBJECTS, _EXPECTED)
    if any(_TAG.search(name) or "{box:" in name for name in names):
        fields.refuse(
            f'"{OBJECTS}" has a name with a tag or a box field, which would be filled in once more; take it out'
        )
    if not isinstance(corners, list) or not all(isinstance(box, list) and len(box) == 4 for box in corners):
        fields.refuse_value(OBJECTS, f"{_EXPECTED}; points are not read")
    box_type = objects.get("bbox_type") or _PIXELS
    if box_type not in (_PIXELS, _FRACTIONS):
        fields.refuse(f'"bbox_type" is {box_type!r}; it takes {_PIXELS}, for pixels, or {_FRACTIONS}, for fractions')
    if objects.get("image_id") and any(objects["image_id"]):
        fields.refuse('"image_id" names another image than the first; put first the image that all boxes are of')
    is_fraction = box_type == _FRACTIONS
    if clash := [key for key in ("boxes", *(("frame",) if is_fraction else ())) if key in fields.keys]:
        fields.refuse(f'both "{clash[0]}" and "{OBJECTS}"; write one of them')
    if is_fraction and not all(type(x) in (int, float) and 0 <= x <= 1 for box in corners for x in box):
        fields.refuse_value(OBJECTS, f"boxes from 0 to 1, as bbox_type is {_FRACTIONS}")
    return names, corners, is_fraction


def _text(turn: Any, text_key: str) -> str | None:
    text = turn.get(text_key) if isinstance(turn, dict) else None
    return text if isinstance(text, str) else None


def _box_fields(count: int) -> Iterator[str]:
    return (f"{{box:{index}}}" for index in range(count))


def _refuse_tags(fields: Fields, texts: Sequence[str]) -> None:
    """Refuses tags that nothing replaces. One that is closed, as in `<bbox>[1, 2, 3, 4]</bbox>`, is text."""
    for tag, key in _LISTS.items():
        if any(text.count(tag) > text.count(tag.replace("<", "</")) for text in texts):
            fields.refuse(f'the texts have {tag}, but there is no "{OBJECTS}" whose "{key}" replaces it; add it')
