"""What files and models wrote, made safe to stand inside a page."""

from __future__ import annotations

import json
from typing import Any

_ESCAPES = {ord(it): f"\\u{ord(it):04x}" for it in "<>&\u2028\u2029"}


def embedded(value: Any) -> str:
    """JSON that cannot end the script element that it stands in.

    Raises:
        ValueError: it holds a number that JSON lacks.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
