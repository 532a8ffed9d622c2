"""A checkpoint folder: finding it, here or on the hub, and its files that are not weights. Loads no JAX."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from currreft_jax.models.config import ModelConfig, UnsupportedModel

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"

# Copied as they are from a folder to what is made of it, and all that is asked of a hub besides the weights.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    TOKENIZER,
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


def resolve(source: str | Path) -> Path:
    """A checkpoint folder, or the local copy of a hub's, downloaded when it is not there yet.

    Raises:
        FileNotFoundError: neither; the message says what to download to where.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise FileNotFoundError(f"{source} is neither a folder nor the id of a model on the hub (such as owner/name)")
    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG, "*.safetensors", INDEX, *COMPANIONS]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is not a folder here and could not be had from the hub ({type(error).__name__}). Where there is"
            f" a network, run `hf download {source} --local-dir {folder.name}`, copy that folder here and give its path"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file holds something else; the message names file and line.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a JSON object is expected, not {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object as the published folders have them."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_config(folder: Path) -> ModelConfig:
    """Reads the model's shape from a checkpoint folder."""
    path = folder / CONFIG
    if not path.exists():
        raise UnsupportedModel(f"{path} is missing: {folder} is not a checkpoint folder")
    return ModelConfig.from_hf(read_json(path), str(path))


def tokenizer_size(folder: Path) -> int | None:
    """One more than the largest id of a checkpoint's tokenizer; None for a folder without `tokenizer.json`.

    Raises:
        ValueError: the file holds no vocabulary.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None
    try:
        tokenizer = read_json(path)
        known = {
            **tokenizer["model"]["vocab"],
            **{token["content"]: token["id"] for token in tokenizer["added_tokens"]},
        }
        return max(known.values()) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a tokenizer with a vocabulary ({error}); copy it from the model's original folder"
        ) from error


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """The tokens that end a completion: as `generation_config.json` lists them, else the ends of a turn and of a text.

    Raises:
        ValueError: the file lists something else than ids; the message names it.
    """
    path, config = folder / GENERATION_CONFIG, read_config(folder)
    stored = read_json(path).get("eos_token_id") if path.exists() else None
    ids = (
        [config.eos_token_id, config.bos_token_id]
        if stored is None
        else stored
        if isinstance(stored, list)
        else [stored]
    )
    if not ids or not all(type(token) is int and 0 <= token < config.vocab_size for token in ids):
        raise ValueError(f"{path}: eos_token_id is {stored!r}; it takes ids of the vocabulary")
    return tuple(dict.fromkeys(ids))


def copy_companions(source: Path, destination: Path) -> None:
    """Copies tokenizer, template, processor and generation files unchanged."""
    for name in COMPANIONS:
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)
    if not (destination / GENERATION_CONFIG).exists():
        config = read_config(source)
        stop = [config.eos_token_id, config.bos_token_id]
        write_json(
            destination / GENERATION_CONFIG,
            {"bos_token_id": config.bos_token_id, "eos_token_id": stop, "pad_token_id": config.bos_token_id},
        )
