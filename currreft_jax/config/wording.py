"""Words of the messages that programs print."""


def plural(count: int, one: str, several: str = "") -> str:
    """Formats a count with its noun: `1 row`, `2,000 rows`.

    Args:
        count: the number.
        one: the words after 1, such as `row is`.
        several: the words after other numbers, such as `rows are`; where empty, `one` with an s.
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
