"""Parameters from a model of any kind: hub id, Hugging Face folder, converted folder, or a checkpoint of a run."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from currreft_jax.config import AttentionKernel, Pretrained
from currreft_jax.data import processor as processors
from currreft_jax.data.processor import Processor
from currreft_jax.models import hf
from currreft_jax.models.folder import resolve
from currreft_jax.models.lora import add_adapters, merge_adapters
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.checkpoint import restore_item
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.workdir import CHECKPOINTS, EXPORT, is_stage_dir, read_config, saved_steps
from currreft_jax.session.session import load_config_processor, make_model


class LoadedModel(NamedTuple):
    """A model ready to run.

    Attributes:
        processor: processor of the model.
        model: how to compute, on which mesh.
        params: in the model's precision.
    """

    processor: Processor
    model: Model
    params: Parameters


def resolve_source(source: str | Path) -> Path:
    """Returns the folder that a model is loaded from; a hub id is downloaded unless the hub's cache has it.

    Args:
        source: see `load_source`.

    Raises:
        FileNotFoundError: nothing there.
    """
    path = Path(source).expanduser()
    if is_stage_dir(path):
        if (path / EXPORT).exists():
            return path / EXPORT
        steps = saved_steps(path)
        if not steps:
            raise FileNotFoundError(f"{path} holds no checkpoint yet: {CHECKPOINTS}/ is empty")
        return path / CHECKPOINTS / str(steps[-1])
    return path if _is_checkpoint(path) else resolve(source)


def load_source_processor(
    source: str | Path, *, dtype: str | None = None, min_pixels: int | None = None, max_pixels: int | None = None
) -> Processor:
    """Loads the processor of a model; see `load_source`."""
    path = resolve_source(source)
    if _is_checkpoint(path):
        return load_config_processor(_checkpoint_settings(path, dtype, min_pixels, max_pixels))
    return processors.load(path, min_pixels=min_pixels, max_pixels=max_pixels)


def load_source(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> LoadedModel:
    """Loads a model to run it.

    Args:
        source: a hub id, a Hugging Face folder, a folder of `tools.convert_weights`, a stage's folder of a run (its
            exported model, or else its latest checkpoint), or `STAGE/checkpoints/STEP`.
        mesh: the devices; this process's first one by default.
        dtype: dtype of parameters, activations and products; the source's by default.
        min_pixels: area that smaller images are enlarged to; the source's by default.
        max_pixels: area that larger images are shrunk to; the source's by default.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the source is damaged, or no model.
    """
    path = resolve_source(source)
    processor = load_source_processor(source, dtype=dtype, min_pixels=min_pixels, max_pixels=max_pixels)
    if _is_checkpoint(path):
        settings = _checkpoint_settings(path, dtype, min_pixels, max_pixels)
        return LoadedModel(processor, *load_checkpoint(settings, path, processor, mesh))
    model, params = hf.load(path, mesh=mesh, dtype=dtype)
    return LoadedModel(processor, dataclasses.replace(model, tokenizer_size=processor.tokenizer_size), params)


def _is_checkpoint(path: Path) -> bool:
    """Returns whether a path is that of a step, `STAGE/checkpoints/STEP`."""
    return path.parent.name == CHECKPOINTS and path.name.isdecimal()


def _checkpoint_settings(
    step_dir: Path, dtype: str | None, min_pixels: int | None, max_pixels: int | None
) -> Pretrained:
    settings = read_config(step_dir.parent.parent).model
    return dataclasses.replace(
        settings,
        dtype=dtype or settings.dtype,
        attention=AttentionKernel.AUTO,  # these devices need not be the run's
        min_pixels=min_pixels or settings.min_pixels,
        max_pixels=max_pixels or settings.max_pixels,
    )


def load_checkpoint(
    settings: Pretrained, step_dir: Path, processor: Processor, mesh: Mesh | None = None
) -> tuple[Model, Parameters]:
    """Loads the policy that a run saved after a step, as the run sampled from it: see `to_policy`.

    Args:
        settings: settings of the run's model.
        step_dir: folder of the step.
        processor: processor of the model.
        mesh: the devices; this process's first one by default.

    Raises:
        DamagedCheckpoint: the files are not what was written.
        ValueError: the checkpoint is of another model.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    model = make_model(settings, processor.config, mesh, processor.tokenizer_size)
    return model.merged, to_policy(model)(restore_item(step_dir, "params", model.abstract(jnp.float32)))


def load_masters(source: str, model: Model, seed: int) -> Parameters:
    """Loads fp32 parameters to train, with fresh adapters where the model has some.

    Args:
        source: a hub id, a Hugging Face folder or a converted one.
        model: the model to train.
        seed: seed of the adapters.

    Raises:
        ValueError: the source is of another architecture than the model.
    """
    found, params = hf.load(source, mesh=model.mesh, dtype=model.dtype, param_dtype=jnp.float32)
    theirs, ours = (dataclasses.asdict(one.config) | {"dtype": ""} for one in (found, model))
    if differing := [name for name in ours if theirs[name] != ours[name]]:
        raise ValueError(
            f"{source} has another {', '.join(differing)} than model.path: the reference must be a model of the same"
            " architecture"
        )
    return add_adapters(model, params, seed) if model.adapters else params


@lru_cache
def to_compute_dtype(model: Model) -> Any:
    """Makes the jitted cast of fp32 masters to the model's compute dtype."""
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract(model.dtype))
    return jax.jit(lambda params: jax.tree.map(lambda x: x.astype(model.dtype), params), out_shardings=shardings)


@lru_cache
def to_policy(model: Model) -> Any:
    """Makes the jitted function from fp32 masters to the policy that is sampled from, parameters of `model.merged`.

    Adapters are merged in fp32 before the cast: merged into rounded kernels, small ones would vanish in the rounding.
    """
    cast = to_compute_dtype(model.merged)
    return jax.jit(lambda params: cast(merge_adapters(model, params))) if model.adapters else cast
