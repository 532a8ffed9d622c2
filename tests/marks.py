"""Which cases of a test the quick suite runs."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], keep: Callable[[Any], bool] | int = 1) -> list[Any]:
    """Parameters of a test, of which only those to `keep` are in the quick suite.

    Args:
        cases: the parameters; a tuple for several of them.
        keep: how many of the first, or whether one stays.
    """
    marked = []
    for index, case in enumerate(cases):
        stays = index < keep if isinstance(keep, int) else keep(case)
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=() if stays else pytest.mark.slow))
    return marked
