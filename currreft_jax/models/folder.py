"""Checkpoint folders: resolving a path or hub id, and the files other than weights. Loads no JAX."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from currreft_jax.config.missing import name_nearest
from currreft_jax.models.config import ModelConfig, UnsupportedModel

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"  # peft's
TOKENIZER = "tokenizer.json"

# Files copied unchanged to an export, and downloaded from the hub along with the weights.
AUXILIARY_FILES = (
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
_MODEL_FILES = (CONFIG, "*.safetensors", INDEX, ADAPTER_CONFIG)


def resolve(source: str | Path) -> Path:
    """Returns a checkpoint's folder; a hub id is downloaded unless the hub's cache has it.

    Raises:
        FileNotFoundError: neither a folder nor available from the hub; the message gives the download command.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        is_run = next(folder.parent.glob("*/checkpoints"), None) is not None
        later = f"; the run in {folder.parent} may not have come to it: its training command goes on" if is_run else ""
        raise FileNotFoundError(
            f"{source} is neither a folder nor the id of a model on the hub (such as owner/name)"
            f"{name_nearest(folder)}{later}"
        )
    try:
        return Path(snapshot_download(str(source), allow_patterns=[*_MODEL_FILES, *AUXILIARY_FILES]))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is not a folder and cannot be downloaded from the hub ({type(error).__name__}). On a machine"
            f" with network access, run `hf download {source} --local-dir {folder.name}`, copy the folder here and give"
            f" its path{name_nearest(folder)}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the file holds no JSON object; the message names file and line.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, formatted as in the published folders."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_model_config(folder: Path) -> ModelConfig:
    """Reads a checkpoint's `config.json`."""
    path = folder / CONFIG
    if not path.exists():
        reason = f"{path} is missing: {folder} is not a checkpoint folder"
        raise UnsupportedModel(explain_missing_weights(folder) if _is_adapter(folder) else reason)
    return ModelConfig.from_hf(read_json(path), str(path))


def explain_missing_weights(folder: Path) -> str:
    """Returns what a folder without readable weights holds instead, and what to do."""
    if _is_adapter(folder):
        config = read_json(folder / ADAPTER_CONFIG) if (folder / ADAPTER_CONFIG).exists() else {}
        base = config.get("base_model_name_or_path", "its base model")
        return (
            f"{folder} holds a LoRA adapter and no model: merge it into {base} (in peft: merge_and_unload, then"
            " save_pretrained) and give the merged folder"
        )
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} holds its weights in {pickles[0]}, a pickle, which could run any program: save the model as"
            " safetensors (in transformers: from_pretrained, then save_pretrained) and give that folder"
        )
    if parts := sorted(path.name for path in folder.glob("*.safetensors")):
        return (
            f"{folder} holds {parts[0]} but no {INDEX}, which lists the files and their weights: copy it there as well"
        )
    return f"{folder} holds no {WEIGHTS_FILE}: download it, or give a folder with weights"


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).exists() or any(folder.glob("adapter_model.*"))


def tokenizer_size(folder: Path) -> int | None:
    """Returns one more than the tokenizer's largest id, or None for a folder without `tokenizer.json`.

    Raises:
        ValueError: the file has no vocabulary.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None
    try:
        tokenizer = read_json(path)
        added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        return max({**tokenizer["model"]["vocab"], **added}.values()) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a tokenizer with a vocabulary ({error}); copy it from the model's original folder"
        ) from error


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Returns the stop tokens: those of `generation_config.json`, or else the config's default ones.

    Raises:
        ValueError: the file's `eos_token_id` is not made of token ids; the message names the file.
    """
    path, config = folder / GENERATION_CONFIG, read_model_config(folder)
    stored = read_json(path).get("eos_token_id") if path.exists() else None
    if stored is None:
        return tuple(dict.fromkeys(config.stop_token_ids))
    ids = stored if isinstance(stored, list) else [stored]
    if not ids or not all(type(token) is int and 0 <= token < config.vocab_size for token in ids):
        raise ValueError(f"{path}: eos_token_id is {stored!r}; expected one or more ids of the vocabulary")
    return tuple(dict.fromkeys(ids))


def copy_auxiliary_files(source: Path, destination: Path) -> None:
    """Copies tokenizer, chat template, processor and generation files unchanged; writes a missing generation config."""
    for name in AUXILIARY_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, destination / name)
    if not (destination / GENERATION_CONFIG).exists():
        config = read_model_config(source)
        bos, stop = config.bos_token_id, list(config.stop_token_ids)
        write_json(destination / GENERATION_CONFIG, {"bos_token_id": bos, "eos_token_id": stop, "pad_token_id": bos})
