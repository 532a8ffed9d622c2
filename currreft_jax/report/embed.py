"""JSON of untrusted values that is safe inside an HTML page."""

from __future__ import annotations

import json
from typing import Any

_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def html_safe_json(value: Any) -> str:
    """Dumps JSON that cannot end the script element around it.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)
