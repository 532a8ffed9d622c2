"""The GRPO step, and its helpers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import AdvantageScale, Grpo
from currreft_jax.data.examples import Example
from currreft_jax.data.microbatches import split_groups
from currreft_jax.evaluation.scoring import ScoredRollout, score_rollout
from currreft_jax.models.qwen2_5_vl import Model, Parameters, token_logprobs
from currreft_jax.runtime.multihost import allgather, to_devices
from currreft_jax.runtime.sharding import BATCH
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.sampling.sampler import sample
from currreft_jax.session.sources import to_policy
from currreft_jax.structs import Array, GroupBatch, GrpoTargets, PromptBatch, Rollout
from currreft_jax.training.batches import (
    Bucket,
    StageContext,
    StepPrompts,
    bucket_of,
    collate_prompts,
    host_groups,
    microbatch_splitter,
    row_sampling,
)
from currreft_jax.training.losses import group_advantages, loss_weights
from currreft_jax.training.records import rollout_metrics, rollout_records, rollout_values, row_record
from currreft_jax.training.update import Microbatch, TrainState, UpdatePrograms, loss_and_gradient


class StepResult(NamedTuple):
    """The outcome of a training step.

    Attributes:
        state: after it.
        metrics: numbers; those of the update are still on the device.
        records: makes one JSON object for each of this host's rows.
        buckets: static shapes of its microbatches.
    """

    state: TrainState
    metrics: dict[str, Any]
    records: Callable[[], list[dict[str, Any]]]
    buckets: list[Bucket]


def grpo_step(
    context: StageContext,
    programs: UpdatePrograms,
    reward_thread: ThreadPoolExecutor,
    state: TrainState,
    examples: Sequence[Example],
    step: int,
    timer: StepTimer,
) -> StepResult:
    """Takes a step of GRPO (Algorithm 1 of arXiv 2402.03300, with the advantages of arXiv 2503.07065, equation 1).

    The loss and its gradient are `gradients.grpo_gradient`. Completions are scored in a thread of their own, while
    the device computes the log-probs of the reference.

    Args:
        context: stage context.
        programs: update programs.
        reward_thread: an executor with one worker, which takes its tasks in order.
        state: donated.
        examples: this host's.
        step: step number within the stage, from 1; with the run's seed, the stage and each row's key it seeds the
            completions.
        timer: times the phases.
    """
    config = context.config
    prompts, batch = collate_prompts(context, examples)
    timer.start()
    policy = to_policy(context.model)(state.params)

    rollout = sample_completions(context, policy, batch, step, timer)
    rewards = reward_thread.submit(timer.call, "score", score_groups, context, prompts, rollout)
    advantages = reward_thread.submit(advantages_of, rewards, config.grpo)
    ref_logprobs = reference_logprobs(context, prompts.microbatches, rollout)
    timer.record("reference", ref_logprobs)

    del policy, batch  # frees device memory for the update
    minibatches, metrics = grpo_minibatches(
        context, prompts, rollout, rewards.result(), advantages.result(), ref_logprobs
    )
    loss_metrics, grad_norms = [], []
    timer.start()
    for minibatch in minibatches * config.grpo.num_updates:
        gradient, of_minibatch = loss_and_gradient(programs, state.params, minibatch)
        state, grad_norm = programs.apply_gradients(state, gradient)
        loss_metrics += of_minibatch
        grad_norms.append(grad_norm)
    timer.record("update", grad_norms)

    rows = [row_record(config, example) for example in prompts.examples]  # text only, so that the images can be freed
    references = list(zip(prompts.rows, ref_logprobs, strict=True)) if context.ref_params is not None else []
    records = partial(rollout_records, context.processor, rows, rollout, prompts.parts, rewards.result())
    return StepResult(
        state,
        {**programs.combine_metrics(loss_metrics, grad_norms), **metrics},
        partial(records, advantages.result(), references),
        [bucket_of(group) for minibatch in minibatches for group, *_ in minibatch],
    )


def score_groups(context: StageContext, prompts: StepPrompts, rollout: Rollout) -> ScoredRollout:
    """Scores this host's completions in whole groups."""
    return score_rollout(context, prompts.examples, host_groups(rollout, prompts.parts))


def sample_completions(
    context: StageContext, policy: Parameters, batch: PromptBatch, step: int, timer: StepTimer
) -> Rollout:
    """Samples completions, a group or its part for every row; times the prefill and the decoding."""
    rollout = sample(
        context.model.merged,
        policy,
        context.processor,
        batch,
        row_sampling(context.config, context.layout),
        seed=context.config.seed,
        stage=context.stage_index,
        step=step,
        completion_lengths=context.buckets.completion_lengths,
        on_prefill=partial(timer.record, "prefix"),
    )
    timer.record("decode", rollout.lengths)
    return rollout


def advantages_of(rewards: Future[ScoredRollout], settings: Grpo) -> np.ndarray:
    """Computes this host's advantages `[P, G]`."""
    total = rewards.result().scores.total
    batch_rewards = allgather({"reward": total})["reward"] if settings.advantage_scale is AdvantageScale.BATCH else None
    return group_advantages(total, settings.advantage_scale, batch_rewards)


def reference_logprobs(
    context: StageContext, microbatches: Sequence[PromptBatch], rollout: Rollout
) -> list[Array | None]:
    """Computes the reference's log-probs of each microbatch, `[P, G, T]`; None without a reference."""
    if context.ref_params is None:
        return [None] * len(microbatches)
    program = reference_program(context.model, context.config.sampling.temperature)
    tokens = microbatch_splitter(context.model.mesh, len(microbatches))(rollout.tokens)
    return [program(context.ref_params, *pair) for pair in zip(microbatches, tokens, strict=True)]


@lru_cache
def reference_program(model: Model, temperature: float) -> Any:
    """Makes the jitted log-probs of the reference, sharded like the policy's."""

    def logprobs(params: Parameters, prompts: PromptBatch, tokens: Array) -> jax.Array:
        return token_logprobs(model, params, prompts, tokens, temperature=temperature)

    return jax.jit(logprobs, out_shardings=NamedSharding(model.mesh, P(BATCH)))


def grpo_minibatches(
    context: StageContext,
    prompts: StepPrompts,
    rollout: Rollout,
    rewards: ScoredRollout,
    advantages: np.ndarray,
    ref_logprobs: Sequence[Array | None],
) -> tuple[list[list[Microbatch]], dict[str, float]]:
    """Splits a scored rollout into minibatches of microbatches, arguments of `grpo_gradient`; computes its metrics."""
    config, mesh, layout = context.config, context.model.mesh, context.layout
    lengths, finished = rewards.completions.lengths, rewards.completions.finished
    loss_lengths = np.where(finished | (not config.grpo.mask_truncated), lengths, 0)
    minibatch_of_row = np.empty(prompts.parts.size, np.int64)
    for k, rows in enumerate(prompts.rows):
        minibatch_of_row[rows] = k // layout.microbatches
    gathered = allgather(
        {
            **rollout_values(prompts.examples, rewards),
            "loss_length": loss_lengths,
            "minibatch": minibatch_of_row[prompts.parts[:, 0]],
            "prompt_length": np.array([len(example.prompt.tokens) for example in prompts.examples]),
        }
    )
    split = microbatch_splitter(mesh, len(prompts.microbatches))
    tokens, old_logprobs = split(rollout.tokens), split(rollout.logprobs)
    row_lengths, row_advantages = (split_groups(x, prompts.parts) for x in (loss_lengths, advantages))
    minibatches: list[list[Microbatch]] = [[] for _ in range(layout.minibatches)]
    for k, rows in enumerate(prompts.rows):
        index = k // layout.microbatches
        of_minibatch = gathered["loss_length"][gathered["minibatch"] == index]
        counts = np.array([of_minibatch.sum(), np.count_nonzero(of_minibatch)])
        loss_mask = np.arange(rollout.tokens.shape[2]) < row_lengths[rows][..., None]
        weights = loss_weights(loss_mask, config.loss_average, counts, config.sampling.max_new_tokens)
        weights, own_advantages = to_devices((weights, row_advantages[rows].astype(np.float32)), mesh)
        targets = GrpoTargets(own_advantages, old_logprobs[k], ref_logprobs[k])
        minibatches[index].append((GroupBatch(prompts.microbatches[k], tokens[k]), weights, targets))
    num_tokens = float(gathered["length"].sum())
    return minibatches, {
        **rollout_metrics(gathered),
        "num_step_tokens": float(gathered["prompt_length"].sum()) + num_tokens,
        "num_completion_tokens": num_tokens,
        "num_loss_tokens": float(gathered["loss_length"].sum()),
        "passes": float(config.grpo.num_updates),
        "padding/completion_waste": 1 - num_tokens / rollout.tokens.size,
        **prompts.padding,
    }
