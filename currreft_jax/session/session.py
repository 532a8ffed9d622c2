"""A config opened: processor, model on its mesh, and reward pool, for any program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from currreft_jax.config import Config, Method, Pretrained
from currreft_jax.data import processor as processors
from currreft_jax.data.processor import Processor
from currreft_jax.models.config import ModelConfig
from currreft_jax.models.qwen2_5_vl import Model
from currreft_jax.rewards import MathsPool
from currreft_jax.rewards.failures import FailureCounts
from currreft_jax.runtime.multihost import local_cores, max_over_hosts
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import memory_limit
from currreft_jax.session.meshes import choose_meshes


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The parts that programs share; parameters are loaded apart, by `session.sources`.

    Attributes:
        config: all settings, with the meshes chosen.
        processor: texts and images to prompts, tokens to text.
        model: how to compute, on which mesh.
        reward_pool: worker processes for maths answers; None where nothing is scored.
        failure_counts: completions for which rewards of one's own failed.
    """

    config: Config
    processor: Processor
    model: Model
    reward_pool: MathsPool | None = None
    failure_counts: FailureCounts = field(default_factory=FailureCounts)


@contextmanager
def open_session(config: Config) -> Iterator[Session]:
    """Loads the processor, lays the model out on its mesh, and starts reward workers where answers are scored.

    Raises:
        FileNotFoundError: the model's folder is not there.
        ValueError: the mesh does not fill the devices, or a file of the folder is wrong.
    """
    processor = load_config_processor(config.model)
    config = choose_meshes(config, processor.config, jax.devices(), least_memory())
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    session = Session(
        config=config,
        processor=processor,
        model=make_model(config.model, processor.config, mesh, processor.tokenizer_size),
    )
    if config.method is not Method.GRPO and not any(stage.evaluated for stage in config.stages):
        yield session
        return
    with MathsPool(config.rewards.maths, local_cores()) as pool:
        yield Session(config=config, processor=processor, model=session.model, reward_pool=pool)


def least_memory() -> float | None:
    """Returns the bytes available to arrays on the device that has least; None if any host's are unknown."""
    limit = memory_limit(jax.devices())
    (unavailable,) = max_over_hosts(np.array([np.inf if limit is None else -limit]))
    return None if np.isinf(unavailable) else -float(unavailable)


def load_config_processor(settings: Pretrained) -> Processor:
    """Loads the processor of a config's model."""
    return processors.load(
        settings.path, min_pixels=settings.min_pixels or None, max_pixels=settings.max_pixels or None
    )


def make_model(settings: Pretrained, architecture: ModelConfig, mesh: Mesh, tokenizer_size: int | None) -> Model:
    """Describes the model as it is trained: with its adapters, precision, rematerialisation and attention.

    Raises:
        ValueError: the devices lack the kernel of `model.attention`.
    """
    return Model(
        architecture,
        mesh,
        jnp.dtype(settings.dtype),
        settings.remat,
        tokenizer_size,
        settings.lora.rank,
        settings.lora.alpha,
        settings.attention,
    )
