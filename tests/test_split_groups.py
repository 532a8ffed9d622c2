"""Groups split over data shards: the same completions, records, metrics and gradient as on one device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from currreft_jax.config import Config, Grpo, MeshShape, batch_layout
from currreft_jax.data.buckets import config_buckets
from currreft_jax.data.examples import make_example
from currreft_jax.data.microbatches import join_parts, split_groups
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.prompts import load_template
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.session.session import load_config_processor, make_model
from currreft_jax.session.sources import load_masters, to_compute_dtype
from currreft_jax.training import grpo
from currreft_jax.training.batches import StageContext, layout_on
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.update import gradient_function, init_state, update_programs
from tests.test_grpo import config_of, rows

__all__ = ["rows"]


def config_with(checkpoint, rows, prompts: int, **changes) -> Config:
    config = config_of(checkpoint, rows, steps=1, **changes)
    config.data.batch_size, config.data.slots = prompts, ()
    config.sampling.segment = config.sampling.max_new_tokens
    return config


def opened(config: Config, devices: int):
    """A stage's context on so many devices, and the examples of a step."""
    processor = load_config_processor(config.model)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, jax.devices()[:devices])
    model = make_model(config.model, processor.config, mesh, processor.tokenizer_size)
    buckets = config_buckets(config, processor, layout_on(config, mesh))
    mixture = load_mixture(config.stages, 0, config.data, 0)
    source = [mixture.sources[0].file[i] for i in range(config.data.batch_size)]
    mixture.close()
    template = load_template("paper")
    examples = [make_example(row, processor, template, location=row.id) for row in source]
    params = load_masters(config.model.path, model, config.seed)
    context = StageContext(
        config=config,
        processor=processor,
        model=model,
        stage_index=0,
        buckets=buckets,
        ref_params=to_compute_dtype(model)(params),
    )
    return context, params, examples


def step_on(config: Config, devices: int, monkeypatch):
    """Records, metrics and gradients of a step; records by the ids of their rows."""
    context, params, examples = opened(config, devices)
    gradients = []

    def loss_and_gradient(*args):
        gradient, metrics = grad_and_loss(*args)
        gradients.append(jax.tree.map(np.asarray, gradient))
        return gradient, metrics

    grad_and_loss = grpo.loss_and_gradient
    optimizer = stage_optimizer(config, 0)
    programs = update_programs(context.model, optimizer.transform, optimizer.settings, gradient_function(config))
    state = init_state(context.model, optimizer.transform, params)
    timer = StepTimer()
    with ThreadPoolExecutor(1) as thread, monkeypatch.context() as patched:
        patched.setattr(grpo, "loss_and_gradient", loss_and_gradient)
        result = grpo.grpo_step(context, programs, thread, state, examples, 1, timer)
    timer.close()
    return {record["id"]: record for record in result.records()}, jax.tree.map(float, result.metrics), gradients


@pytest.fixture(scope="module")
def on_one_device(checkpoint, rows):
    """The step of so many prompts and minibatches on one device, and its config."""

    @cache
    def step(prompts: int, minibatches: int):
        config = config_with(checkpoint, rows, prompts, mesh=MeshShape(1, 1, 1), grpo=Grpo(minibatches=minibatches))
        with pytest.MonkeyPatch.context() as monkeypatch:
            return config, step_on(config, 1, monkeypatch)

    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "minibatches", "mesh", "sampling_mesh", "microbatches", "completions"),
    [
        (2, 1, MeshShape(2, 1, 4), (-1, 1), 2, 2),  # the sampler splits the parts again
        (4, 2, MeshShape(1, 8, 1), (4, 2), 1, 1),
    ],
)
def test_a_step_with_split_groups_is_that_of_one_device(
    on_one_device, monkeypatch, prompts, minibatches, mesh, sampling_mesh, microbatches, completions
):
    alone, (records, metrics, gradients) = on_one_device(prompts, minibatches)
    config = replace(alone, mesh=mesh, microbatches=microbatches, sampling=replace(alone.sampling, mesh=sampling_mesh))
    layout = batch_layout(config, 8 // mesh.tensor)
    assert (layout.completions_per_row, layout.microbatches) == (completions, microbatches)
    split_records, split_metrics, split_gradients = step_on(config, 8, monkeypatch)
    assert split_records.keys() == records.keys()
    for row_id, record in records.items():
        for split, whole in zip(split_records[row_id]["completions"], record["completions"], strict=True):
            for name in ("text", "tokens", "reward", "advantage"):
                assert split[name] == whole[name], (row_id, name)
            for name in ("logprobs", "entropies", "reference"):
                np.testing.assert_allclose(split[name], whole[name], atol=1.1e-4)  # rounded to four digits
    assert split_metrics.keys() == metrics.keys()
    for name in metrics:
        if not name.startswith(("padding/", "sampling/")):
            assert split_metrics[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-7), name
    for split, whole in zip(split_gradients, gradients, strict=True):
        leaves = zip(jax.tree_util.tree_leaves_with_path(split), jax.tree.leaves(whole), strict=True)
        for (path, ours), theirs in leaves:
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0, err_msg=str(path))


def test_groups_are_joined_from_their_parts_wherever_these_stand():
    groups = np.arange(3 * 4 * 2).reshape(3, 4, 2)
    parts = np.array([[4, 0], [1, 5], [3, 2]])
    rows = split_groups(groups, parts)
    np.testing.assert_array_equal(rows[4], groups[0, :2])
    np.testing.assert_array_equal(rows[2], groups[2, 2:])
    np.testing.assert_array_equal(join_parts(rows, parts), groups)
