"""Words of the messages that programs print."""

from collections.abc import Mapping


def plural(count: int, one: str, several: str = "") -> str:
    """Formats a count with its noun: `1 row`, `2,000 rows`.

    Args:
        count: the number.
        one: the words after 1, such as `row is`.
        several: the words after other numbers, such as `rows are`; where empty, `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def most_frequent(counts: Mapping[str, int], most: int = 3) -> str:
    """Lists the most frequent names with their counts: `bad_json 12, truncated 3 and 2 others`.

    A single other name is listed, too.
    """
    names = sorted(counts, key=lambda name: (-counts[name], name))
    most += len(names) == most + 1
    listed = ", ".join(f"{name} {counts[name]:,}" for name in names[:most])
    others = sum(counts[name] for name in names[most:])
    return f"{listed} and {plural(others, 'other')}" if others else listed
