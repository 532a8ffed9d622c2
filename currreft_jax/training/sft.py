"""Supervised fine-tuning on gold answers (equation 9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from currreft_jax.data.buckets import batch_dims
from currreft_jax.data.examples import Example
from currreft_jax.data.microbatches import collate_gold, make_microbatches
from currreft_jax.runtime.multihost import shards_per_host, sum_over_hosts, to_devices
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.training.batches import StageContext, agree_on_dims, bucket_of, prompt_padding
from currreft_jax.training.grpo import StepResult
from currreft_jax.training.losses import loss_counts, loss_weights
from currreft_jax.training.records import row_record
from currreft_jax.training.update import Minibatch, TrainState, UpdatePrograms, loss_and_gradient


def sft_step(
    context: StageContext,
    programs: UpdatePrograms,
    state: TrainState,
    examples: Sequence[Example],
    timer: StepTimer,
) -> StepResult:
    """Takes a step of supervised fine-tuning.

    Args:
        context: stage context.
        programs: update programs.
        state: donated.
        examples: this host's, with gold completions.
        timer: times the update.
    """
    minibatch, metrics = sft_batch(context, examples)
    timer.start()
    gradient, loss_metrics = loss_and_gradient(programs, state.params, minibatch)
    state, grad_norm = programs.apply_gradients(state, gradient)
    timer.record("update", grad_norm)
    rows = [row_record(context.config, example) for example in examples]
    return StepResult(
        state,
        {**programs.combine_metrics(loss_metrics, [grad_norm]), **metrics},
        lambda: rows,
        [bucket_of(group) for group, _ in minibatch],
    )


def sft_batch(context: StageContext, examples: Sequence[Example]) -> tuple[Minibatch, dict[str, float]]:
    """Collates gold completions into microbatches, the arguments of `sft_gradient`; and their metrics."""
    config, model = context.config, context.model
    shards = shards_per_host(model.mesh)
    parts = make_microbatches(examples, model.config, shards, context.layout.microbatches)
    dims = agree_on_dims([batch_dims(part, model.config, shards) for part in parts])
    num_tokens = sum(len(example.prompt.tokens) + len(example.completion_tokens) for example in examples)
    counts, num_tokens = sum_over_hosts(
        (loss_counts([example.loss_mask for example in examples]), np.array(num_tokens))
    )
    collated = [
        collate_gold(part, model.config, *context.buckets.fit(of_part), shards)
        for part, of_part in zip(parts, dims, strict=True)
    ]
    groups = [group for group, _ in collated]
    weights = [loss_weights(mask, config.loss_average, counts) for _, mask in collated]
    used = sum(len(example.completion_tokens) for example in examples) / sum(group.tokens.size for group in groups)
    metrics = {
        "num_step_tokens": float(num_tokens),
        "num_loss_tokens": float(counts[0]),
        "passes": 1.0,
        "padding/completion_waste": 1 - used,
        **prompt_padding(examples, [group.prompts for group in groups]),
    }
    return list(zip(to_devices(groups, model.mesh), to_devices(weights, model.mesh), strict=True)), metrics
