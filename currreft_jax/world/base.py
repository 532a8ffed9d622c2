"""The base: a small Qwen2.5-VL trained from scratch in the world. Its shape stands here, its weights ship beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_CONFIG = _HERE / "base_config.json"
_FOLDER = _HERE / "base"


def config() -> dict[str, Any]:
    """The model's shape, as a checkpoint's `config.json` has it."""
    return json.loads(_CONFIG.read_text("utf-8"))


def folder() -> Path:
    """The base checkpoint, in Hugging Face's layout.

    Raises:
        FileNotFoundError: this installation has none.
    """
    if not (_FOLDER / "config.json").exists():
        raise FileNotFoundError(
            f"{_FOLDER} holds no checkpoint: `make base`, run in the repository, trains one; or give --model"
        )
    return _FOLDER
