"""The shape of a model whose checkpoint need not be at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from currreft_jax.config import Config
from currreft_jax.data.processor import MAX_PIXELS, read_preprocessor_config
from currreft_jax.models.config import PUBLISHED, ModelConfig
from currreft_jax.models.folder import eos_token_ids, read_model_config, tokenizer_size

_PUBLISHED = re.compile(r"Qwen/Qwen2\.5-VL-(\d+)B-Instruct")
_TOKENIZER_SIZE = 151_665  # of the published tokenizer


class ModelSpec(NamedTuple):
    """The part of a model's folder that a plan needs; the folder may not be on this machine.

    Attributes:
        config: architecture of the model.
        max_pixels: area that larger images are shrunk to.
        tokenizer_size: number of token ids; None if unknown.
        stop_token_ids: each ends a completion.
    """

    config: ModelConfig
    max_pixels: int
    tokenizer_size: int | None
    stop_token_ids: tuple[int, ...]


def model_spec(config: Config) -> ModelSpec:
    """Describes the model that a config trains: that of its folder, or the published one of its name.

    Raises:
        FileNotFoundError: there is no folder and no published name.
        ValueError: a file of the folder is malformed.
    """
    bound = config.model.max_pixels
    sources = [path for path in (config.model.path, config.grpo.reference_path) if path]
    for source in sources:
        if Path(source).is_dir():
            folder, model = Path(source), read_model_config(Path(source))
            pixels = bound or read_preprocessor_config(folder, model)["max_pixels"]
            return ModelSpec(model, pixels, tokenizer_size(folder), eos_token_ids(folder))
    for source in sources:
        if (found := _PUBLISHED.fullmatch(source)) and (name := f"{found[1]}b") in PUBLISHED:
            published = PUBLISHED[name]
            stop_token_ids = published.eos_token_id, published.bos_token_id
            return ModelSpec(published, bound or MAX_PIXELS, _TOKENIZER_SIZE, stop_token_ids)
    raise FileNotFoundError(
        f"{' and '.join(sources)}: neither a folder nor the name of a published model. A plan needs the model's"
        " config.json: give its folder as --config.model.path"
    )
