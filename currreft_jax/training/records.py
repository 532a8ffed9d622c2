"""Metrics of rollouts, and the JSON objects of `rollouts/STEP.jsonl` and `held_out/STEP.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from currreft_jax.config import Config, Task
from currreft_jax.data.budget import prompt_text
from currreft_jax.data.examples import Example
from currreft_jax.data.microbatches import join_parts, split_groups
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import load_template
from currreft_jax.data.rows import row_to_json
from currreft_jax.evaluation.held_out import HeldOut, spread
from currreft_jax.evaluation.scoring import ScoredRollout
from currreft_jax.rewards.registry import is_own
from currreft_jax.runtime.multihost import local_rows
from currreft_jax.structs import MAX_REASON, Array, Completion, Reason, Rollout, Scores
from currreft_jax.training.batches import host_groups

MAX_ANSWERS = 64  # that are recorded of a set of held-out rows
_TASKS = tuple(Task)


def rollout_values(examples: Sequence[Example], scored: ScoredRollout) -> dict[str, np.ndarray]:
    """This host's values for `rollout_metrics`: arrays of P rows."""
    scores = scored.scores
    return {
        "reward": scores.total,
        **{f"rewards/{name}": values for name, values in scores.parts.items()},
        **{f"failed/{name}": scores.reasons[name] == Reason.REWARD_FAILED for name in scores.parts if is_own(name)},
        "length": scored.completions.lengths,
        "finished": scored.completions.finished,
        "reason": _first_reasons(scores),
        "task": np.array([_TASKS.index(example.row.task) for example in examples]),
    }


def rollout_metrics(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a step's rewards and completions.

    Args:
        values: from `rollout_values`, gathered over hosts.
    """
    reward, length, task = values["reward"], values["length"], values["task"]
    reasons, counts = np.unique(values["reason"][values["reason"] != ""], return_counts=True)
    failed = {name.removeprefix("failed/"): x for name, x in values.items() if name.startswith("failed/")}
    return {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(axis=1, ddof=1).mean()),
        "frac_reward_zero_std": float((np.ptp(reward, axis=1) == 0).mean()),
        **{
            f"{name}/mean": float(np.nanmean(part))
            for name, part in values.items()
            if name.startswith("rewards/") and not np.isnan(part).all()
        },
        **{f"rewards/{name}/failed": float(x.mean()) for name, x in failed.items() if x.any()},
        **{f"reward/{_TASKS[index].value}": float(reward[task == index].mean()) for index in np.unique(task)},
        "completions/mean_length": float(length.mean()),
        "completions/min_length": float(length.min()),
        "completions/max_length": float(length.max()),
        "completions/clipped_ratio": float(1 - values["finished"].mean()),
        **{
            f"parse/{reason}": count / reward.size
            for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True)
        },
    }


def row_record(config: Config, example: Example) -> dict[str, Any]:
    """Describes a row: its keys, the resized frame, the key that seeds its completions, and its prompt."""
    resized = {"resized": [example.frame.width, example.frame.height]} if example.frame else {}
    frames = [(image.original, image.resized) for image in example.prompt.images]
    prompt = prompt_text(example.row, load_template(config.data.template), frames)
    return row_to_json(example.row) | resized | {"key": example.prompt.key, "prompt": prompt}


def rollout_records(
    processor: Processor,
    row_records: Sequence[dict[str, Any]],
    rollout: Rollout,
    parts: np.ndarray,
    scored: ScoredRollout,
    advantages: np.ndarray,
    ref_logprobs: Sequence[tuple[np.ndarray, Array]],
) -> list[dict[str, Any]]:
    """Describes this host's rows and their completions.

    Args:
        processor: processor that decodes the tokens.
        row_records: from `row_record`, one for each group.
        rollout: rollout of the rows, on the devices.
        parts: from `StepPrompts`.
        scored: their completions and rewards.
        advantages: `[P, G]`.
        ref_logprobs: (rows, the reference's log-probs) of each microbatch; empty without a reference.
    """
    groups = host_groups(rollout, parts)
    tokens, logprobs, entropies = groups.tokens, groups.logprobs, groups.entropies
    reference = split_groups(np.zeros_like(logprobs), parts)
    for rows, of_microbatch in ref_logprobs:
        reference[rows] = local_rows(of_microbatch)
    reference = join_parts(reference, parts)

    def record(p: int, g: int, completion: Completion) -> dict[str, Any]:
        own = p, g, slice(completion.num_tokens)
        return {
            **_completion_record(completion, scored.scores, p, g),
            "advantage": float(advantages[p, g]),
            "tokens": [processor.decode([token]) for token in tokens[own]],
            "logprobs": _rounded(logprobs[own]),
            "entropies": _rounded(entropies[own]),
            **({"reference": _rounded(reference[own])} if ref_logprobs else {}),
        }

    return [
        {**row, "completions": [record(p, g, one) for g, one in enumerate(scored.completions.texts[p])]}
        for p, row in enumerate(row_records)
    ]


def answer_records(config: Config, held_out: HeldOut, first: int, scored: ScoredRollout) -> list[dict[str, Any]]:
    """Describes this host's answers to held-out rows: to `MAX_ANSWERS` rows that are spread evenly over the set.

    Args:
        config: all settings.
        held_out: the set.
        first: index of the first answered example among this host's.
        scored: a batch of answers, one for each row.
    """
    recorded = set(spread(np.arange(held_out.rows), MAX_ANSWERS).tolist())
    examples = held_out.examples[first : first + len(scored.scores.total)]
    records = []
    for p, (example, (completion,)) in enumerate(zip(examples, scored.completions.texts, strict=False)):  # padded batch
        index = (first + p) * jax.process_count() + jax.process_index()  # hosts take turns
        if index in recorded:
            row, answer = row_record(config, example), _completion_record(completion, scored.scores, p, 0)
            records.append({"held_out": held_out.name, "index": index, "row": row, "answer": answer})
    return records


def _completion_record(completion: Completion, scores: Scores, p: int, g: int) -> dict[str, Any]:
    return {
        "text": completion.text,
        "finished": completion.finished,
        "reward": float(scores.total[p, g]),
        "parts": {name: float(x[p, g]) for name, x in scores.parts.items() if not np.isnan(x[p, g])},
        "reasons": {name: str(reasons[p, g]) for name, reasons in scores.reasons.items() if reasons[p, g]},
    }


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Writes JSON lines, whole or not at all; of several hosts each writes its own rows, to `NAME-HOST.jsonl`."""
    if jax.process_count() > 1:
        path = path.with_name(f"{path.stem}-{jax.process_index()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    partial.replace(path)
    return path


def drop_records(folder: Path, after: int) -> None:
    """Removes the files of steps after `after`, which are taken again."""
    for path in folder.glob("*.jsonl"):
        if int(path.stem.partition("-")[0]) > after:
            path.unlink()


def _first_reasons(scores: Scores) -> np.ndarray:
    """Returns each completion's first reason, or an empty string: `[P, G]`, of one dtype on all hosts."""
    first = np.full(scores.total.shape, "", f"<U{MAX_REASON}")
    for reasons in reversed(scores.reasons.values()):
        first = np.where(reasons == None, first, reasons.astype(first.dtype))  # noqa: E711, elementwise
    return first


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 4) for x in values]
