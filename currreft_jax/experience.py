"""What a step learns from: gold answers, or completions that were drawn, scored and compared with their group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import Config, Method, Task
from currreft_jax.data import pipeline
from currreft_jax.data.budget import prompt_text
from currreft_jax.data.examples import Example
from currreft_jax.data.packing import collate, padding_waste
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import template
from currreft_jax.data.rows import to_keys
from currreft_jax.losses import group_advantages, loss_counts, loss_weights
from currreft_jax.models.qwen2_5_vl import Model, Parameters, token_logprobs
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.rollout import sample
from currreft_jax.sharding import BATCH, data_shards, to_devices
from currreft_jax.structs import Array, Completion, GroupBatch, PromptBatch, Reason, Rollout, Sampled, Scores

_TASKS, _REASONS = tuple(Task), tuple(Reason)


@dataclass(frozen=True, slots=True)
class Context:
    """What stays as it is while a stage is trained.

    Attributes:
        config: all settings.
        number: of the stage.
        reader: of texts and images.
        model: how to compute.
        ladders: the shapes of microbatches.
        pool: workers for maths answers.
        reference: parameters of the frozen reference, in the model's precision; None without a KL penalty.
    """

    config: Config
    number: int
    reader: Processor
    model: Model
    ladders: pipeline.Ladders
    pool: MathsPool | None = None
    reference: Parameters | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from.

    Attributes:
        updates: for each move of the optimizer its microbatches: what `sft_gradient` or `grpo_gradient` takes.
        about: metrics.
        told: makes one JSON object for each row of this host: what was asked, said and earned.
    """

    updates: Sequence[Sequence[tuple[Any, ...]]]
    about: dict[str, float]
    told: Callable[[], list[dict[str, Any]]]


def shard_prompts(config: Config, mesh: Mesh) -> int:
    """Prompts of a data shard in a microbatch.

    Raises:
        ValueError: the batch does not divide.
    """
    minibatches = config.grpo.minibatches if config.method is Method.GRPO else 1
    parts = config.microbatches * minibatches * data_shards(mesh)
    if config.data.batch_size % parts:
        raise ValueError(
            f"data.batch_size ({config.data.batch_size}) does not divide into {minibatches} minibatches of"
            f" {config.microbatches} microbatches of {data_shards(mesh)} data shards (mesh.data x mesh.fsdp):"
            " change one of them"
        )
    return config.data.batch_size // parts


def gold_batch(context: Context, examples: Sequence[Example]) -> Batch:
    """The gold answers of a step's rows, on the devices."""
    config, model, ladders = context.config, context.model, context.ladders
    shards = data_shards(model.mesh) // jax.process_count()
    parts = pipeline.arranged(examples, model.config, shards, config.microbatches)
    tokens = sum(len(it.prompt.tokens) + len(it.tokens) for it in examples)
    needed = agreed_needs([pipeline.needs(part, model.config, shards) for part in parts])
    counts, tokens = _added((loss_counts([it.mask for it in examples]), np.array(tokens)))
    batches = [
        pipeline.gold_batch(part, model.config, *ladders.shape(most), shards)
        for part, most in zip(parts, needed, strict=True)
    ]
    groups = [group for group, _ in batches]
    weights = [loss_weights(mask, config.loss_average, counts) for _, mask in batches]
    used = sum(len(it.tokens) for it in examples) / sum(part.tokens.size for part in groups)
    about = {
        "num_tokens": float(tokens),
        "learnt_tokens": float(counts[0]),
        "passes": 1.0,
        "padding/completion_waste": 1 - used,
        **prompt_padding(examples, [part.prompts for part in groups]),
    }
    microbatches = list(zip(to_devices(groups, model.mesh), to_devices(weights, model.mesh), strict=True))
    asked = [_row_told(config, it) for it in examples]
    return Batch([microbatches], about, lambda: asked)


def drawn_batch(context: Context, examples: Sequence[Example], params: Parameters, step: int) -> Batch:
    """Draws completions of a step's prompts, scores them, and compares each with its group.

    The reference reads the completions while they are scored.

    Args:
        context: of the stage.
        examples: this host's.
        params: of the policy, in the model's precision.
        step: of the stage, from 1; with the run's seed, the stage and each row's key it fixes what is drawn.
    """
    config, model = context.config, context.model
    prompts, parts, examples, padding = _collated(context, examples)
    rollout = sample(
        model,
        params,
        context.reader,
        prompts,
        config.sampling,
        seed=config.seed,
        stage=context.number,
        step=step,
    )
    split = _splitter(model.mesh, len(parts))
    tokens = split(rollout.tokens)
    references = [_reference(context, it, drawn) for (it, _), drawn in zip(parts, tokens, strict=True)]

    texts, lengths, finished = completions(context.reader, rollout)
    scores = score(context, examples, texts)
    learnt = np.where(finished | (not config.grpo.mask_truncated), lengths, 0)
    gathered = everyone(
        {
            "reward": scores.total,
            **{f"rewards/{name}": values for name, values in scores.parts.items()},
            "length": lengths,
            "finished": finished,
            "learnt": learnt,
            "reason": _first_reasons(scores),
            "task": np.array([_TASKS.index(it.row.task) for it in examples]),
            "part": np.concatenate([np.full(len(rows), k) for k, (_, rows) in enumerate(parts)])[_inverse(parts)],
            "prompt": np.array([len(it.prompt.tokens) for it in examples]),
        }
    )
    advantages = group_advantages(scores.total, config.grpo.advantage_scale, gathered["reward"])

    updates: list[list[tuple[Any, ...]]] = [[] for _ in range(config.grpo.minibatches)]
    drawn = zip(parts, tokens, split(rollout.logprobs), references, strict=True)
    for k, ((part, rows), own_tokens, logprobs, reference) in enumerate(drawn):
        move = k // config.microbatches
        together = gathered["learnt"][gathered["part"] // config.microbatches == move]
        counts = np.array([together.sum(), np.count_nonzero(together)])
        mask = np.arange(rollout.tokens.shape[2]) < learnt[rows][..., None]
        weights = loss_weights(mask, config.loss_average, counts, config.sampling.max_new_tokens)
        weights, own = to_devices((weights, advantages[rows].astype(np.float32)), model.mesh)
        updates[move].append((GroupBatch(part, own_tokens), weights, Sampled(own, logprobs, reference)))

    about = {
        **rewards_told(gathered),
        "num_tokens": float(gathered["prompt"].sum() + gathered["length"].sum()),
        "learnt_tokens": float(gathered["learnt"].sum()),
        "passes": float(config.grpo.num_updates),
        "padding/completion_waste": 1 - float(gathered["length"].sum()) / rollout.tokens.size,
        **padding,
    }
    # What `told` holds on to must not be images: it is kept until the metrics of several steps are asked for.
    asked = [_row_told(config, it) for it in examples]
    held = [(rows, it) for (_, rows), it in zip(parts, references, strict=True) if it is not None]
    told = partial(_drawn_told, context.reader, asked, texts, scores, advantages, rollout, held)
    return Batch(updates * config.grpo.num_updates, about, told)


def _reference(context: Context, prompts: PromptBatch, tokens: Array) -> Array | None:
    if context.reference is None:
        return None
    return scorer(context.model, context.config.sampling.temperature)(context.reference, prompts, tokens)


@lru_cache
def scorer(model: Model, temperature: float) -> Any:
    """The program of a reference's log-probs, laid out as what they are compared with.

    Args:
        model: how to compute.
        temperature: that completions are drawn with.
    """

    def read(params: Parameters, prompts: PromptBatch, tokens: Array) -> jax.Array:
        return token_logprobs(model, params, prompts, tokens, temperature=temperature)

    return jax.jit(read, out_shardings=NamedSharding(model.mesh, P(BATCH)))


def _drawn_told(
    reader: Processor,
    asked: Sequence[dict[str, Any]],
    texts: Sequence[Sequence[Completion]],
    scores: Scores,
    advantages: np.ndarray,
    rollout: Rollout,
    held: Sequence[tuple[np.ndarray, Array]],
) -> list[dict[str, Any]]:
    tokens, logprobs, entropies = (own_rows(x) for x in (rollout.tokens, rollout.logprobs, rollout.entropies))
    reference = np.zeros_like(logprobs)
    for rows, part in held:
        reference[rows] = own_rows(part)

    def one(p: int, g: int, said: Completion) -> dict[str, Any]:
        drawn = p, g, slice(said.num_tokens)
        return {
            "text": said.text,
            "finished": said.finished,
            "reward": float(scores.total[p, g]),
            "parts": {name: float(values[p, g]) for name, values in scores.parts.items()},
            "reasons": {name: str(why[p, g]) for name, why in scores.reasons.items() if why[p, g]},
            "advantage": float(advantages[p, g]),
            "tokens": [reader.decode([token]) for token in tokens[drawn]],
            "logprobs": _rounded(logprobs[drawn]),
            "entropies": _rounded(entropies[drawn]),
            **({"reference": _rounded(reference[drawn])} if held else {}),
        }

    return [{**row, "completions": [one(p, g, said) for g, said in enumerate(texts[p])]} for p, row in enumerate(asked)]


def completions(reader: Processor, rollout: Rollout) -> tuple[list[list[Completion]], np.ndarray, np.ndarray]:
    """What was said to this host's prompts `[P][G]`, with lengths and whether each came to its end `[P, G]`."""
    tokens, lengths, finished = own_rows(rollout.tokens), own_rows(rollout.lengths), own_rows(rollout.finished)
    texts = [
        [
            Completion(reader.decode(group[g, : lengths[p, g]]), int(lengths[p, g]), bool(finished[p, g]))
            for g in range(len(group))
        ]
        for p, group in enumerate(tokens)
    ]
    return texts, lengths, finished


def score(context: Context, examples: Sequence[Example], texts: Sequence[Sequence[Completion]]) -> Scores:
    """What completions earn, their boxes measured in the frames that the model saw."""
    rows, frames = [it.row for it in examples], [it.frame for it in examples]
    return score_completions(rows, texts, context.config.rewards, frames=frames, pool=context.pool)


def rewards_told(numbers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of what a step's completions earned, over all hosts."""
    reward, length, task = numbers["reward"], numbers["length"], numbers["task"]
    reasons, counts = np.unique(numbers["reason"][numbers["reason"] >= 0], return_counts=True)
    return {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(axis=1, ddof=1).mean()),
        "frac_reward_zero_std": float((np.ptp(reward, axis=1) == 0).mean()),
        **{f"{name}/mean": float(values.mean()) for name, values in numbers.items() if name.startswith("rewards/")},
        **{f"reward/{_TASKS[number].value}": float(reward[task == number].mean()) for number in np.unique(task)},
        "completions/mean_length": float(length.mean()),
        "completions/min_length": float(length.min()),
        "completions/max_length": float(length.max()),
        "completions/clipped_ratio": float(1 - numbers["finished"].mean()),
        **{f"parse/{_REASONS[int(r)]}": n / reward.size for r, n in zip(reasons, counts.tolist(), strict=True)},
    }


def prompt_padding(examples: Sequence[Example], batches: Sequence[PromptBatch]) -> dict[str, float]:
    """Shares of this host's prompts, collated but not yet on the devices, that are padding."""
    tokens = sum(len(it.prompt.tokens) for it in examples)
    patches = [padding_waste(batch).get("patch_waste", 0.0) for batch in batches]
    return {
        "padding/prompt_waste": 1 - tokens / sum(it.tokens.size for it in batches),
        "padding/patch_waste": float(np.mean(patches)),
    }


def own_rows(x: Array) -> np.ndarray:
    """This host's rows of an array that is split over data x fsdp."""
    if jax.process_count() == 1:
        return np.asarray(x)
    return np.asarray(multihost_utils.global_array_to_host_local_array(x, x.sharding.mesh, P(BATCH)))


def everyone(numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all hosts, one host after the other, to the bit."""
    if jax.process_count() == 1:
        return numbers
    # JAX would round float64 to float32 on the way.
    words = {name: np.ascontiguousarray(x, np.float64).view(np.uint32) for name, x in numbers.items()}
    return {
        name: np.ascontiguousarray(x).view(np.float64).astype(numbers[name].dtype).reshape(-1, *numbers[name].shape[1:])
        for name, x in multihost_utils.process_allgather(words).items()
    }


def agreed_needs(needs: Sequence[pipeline.Needs]) -> list[pipeline.Needs]:
    """The largest needs of any host."""
    if jax.process_count() == 1:
        return list(needs)
    every = multihost_utils.process_allgather(np.array([dataclasses.astuple(part) for part in needs]))
    return [pipeline.Needs(*map(int, row)) for row in np.asarray(every).max(axis=0)]


def _collated(
    context: Context, examples: Sequence[Example]
) -> tuple[PromptBatch, list[tuple[PromptBatch, np.ndarray]], list[Example], dict[str, float]]:
    """A step's prompts on the devices, whole and in microbatches with their rows; the examples in order; the padding.

    A shard holds its share of every microbatch, one after the other, so that none moves when the batch is cut up.
    """
    config, model = context.config, context.model
    shards = data_shards(model.mesh) // jax.process_count()
    of_move = len(examples) // config.grpo.minibatches
    parts = [
        part
        for start in range(0, len(examples), of_move)
        for part in pipeline.arranged(examples[start : start + of_move], model.config, shards, config.microbatches)
    ]
    size = len(parts[0]) // shards
    ordered = [it for s in range(shards) for part in parts for it in part[s * size : (s + 1) * size]]
    rows = np.arange(len(ordered)).reshape(shards, len(parts), size)
    needed = agreed_needs([pipeline.needs(part, model.config, shards) for part in (ordered, *parts)])

    def collated(part: Sequence[Example], ladders: pipeline.Ladders, most: pipeline.Needs) -> PromptBatch:
        shape, _ = ladders.shape(most)
        return collate([it.prompt for it in part], model.config, shape, shards)

    if len(parts) == 1:
        whole = collated(ordered, context.ladders, needed[0])
        placed = to_devices(whole, model.mesh)
        return placed, [(placed, rows[:, 0].ravel())], ordered, prompt_padding(ordered, [whole])
    larger = whole_ladders(config, context.reader, size * len(parts))
    whole = collated(ordered, larger, needed[0])
    cut = [collated(part, context.ladders, most) for part, most in zip(parts, needed[1:], strict=True)]
    placed = [(to_devices(it, model.mesh), rows[:, k].ravel()) for k, it in enumerate(cut)]
    return to_devices(whole, model.mesh), placed, ordered, prompt_padding(ordered, cut)


def whole_ladders(config: Config, reader: pipeline.Budgeted, prompts: int) -> pipeline.Ladders:
    """The shapes of a step's prompts that are drawn for together and learnt from in parts.

    Args:
        config: all settings.
        reader: of texts and images.
        prompts: of a data shard.
    """
    return pipeline.ladders(dataclasses.replace(config.data, slots=()), reader, prompts)


@lru_cache
def _splitter(mesh: Mesh, parts: int) -> Callable[[Array], tuple[Array, ...]]:
    """Cuts rows into microbatches, each shard its own."""
    if parts == 1:
        return lambda x: (x,)
    shards = data_shards(mesh)

    def split(x: jax.Array) -> tuple[jax.Array, ...]:
        by_shard = x.reshape(shards, parts, -1, *x.shape[1:])
        return tuple(by_shard[:, k].reshape(-1, *x.shape[1:]) for k in range(parts))

    return jax.jit(split, out_shardings=NamedSharding(mesh, P(BATCH)))


def _inverse(parts: Sequence[tuple[PromptBatch, np.ndarray]]) -> np.ndarray:
    return np.argsort(np.concatenate([rows for _, rows in parts]))


def _first_reasons(scores: Scores) -> np.ndarray:
    """The number of each completion's first reason `[P, G]`, or -1."""
    found = np.full(scores.total.shape, -1)
    for why in reversed(scores.reasons.values()):
        numbers = np.array([[_REASONS.index(it) if it else -1 for it in row] for row in why]).reshape(found.shape)
        found = np.where(numbers >= 0, numbers, found)
    return found


def _row_told(config: Config, it: Example) -> dict[str, Any]:
    """The row, the frame in which the model saw its image, what seeds its completions, and its prompt."""
    resized = {"resized": [it.frame.width, it.frame.height]} if it.frame else {}
    frames = [(picture.original, picture.resized) for picture in it.prompt.images]
    prompt = prompt_text(it.row, template(config.data.template), frames)
    return to_keys(it.row) | resized | {"key": it.prompt.key, "prompt": prompt}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]


def _added(numbers: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The sum over hosts of each."""
    if jax.process_count() == 1:
        return numbers
    return tuple(np.asarray(it).sum(axis=0) for it in multihost_utils.process_allgather(numbers))
