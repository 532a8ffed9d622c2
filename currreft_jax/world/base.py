"""The base: a small Qwen2.5-VL trained from scratch in the world, whose config and weights ship with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_CONFIG = _PACKAGE / "base_config.json"
_CHECKPOINT = _PACKAGE / "base"


def config() -> dict[str, Any]:
    """Returns the model's config, as in a checkpoint's `config.json`."""
    return json.loads(_CONFIG.read_text("utf-8"))


def checkpoint() -> Path:
    """Returns the folder of the base checkpoint, in Hugging Face layout.

    Raises:
        FileNotFoundError: the checkpoint is not installed.
    """
    if not (_CHECKPOINT / "config.json").exists():
        raise FileNotFoundError(
            f"{_CHECKPOINT} holds no checkpoint: `make base`, run in the repository, trains one; or give --model"
        )
    return _CHECKPOINT
