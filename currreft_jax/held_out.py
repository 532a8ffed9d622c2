"""How well the policy answers rows that it is not trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from currreft_jax.config import Config, OnBadRow, Stage
from currreft_jax.curriculum import Measurement
from currreft_jax.data.examples import Example, make_example
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import load_template
from currreft_jax.experience import Context, completions, everyone, score
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.rewards import MathsPool, check_rows
from currreft_jax.rollout import decode_params, sample

# Draws for held-out rows are keyed as those of stages that no run has, the same at every look: what differs between
# two looks is the policy.
_STAGE = 1 << 20


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out rows of a stage.

    Attributes:
        name: of the stage.
        number: of the stage.
        examples: this host's.
        rows: over all hosts; the last examples of a host may be there only to make hosts equal.
    """

    name: str
    number: int
    examples: tuple[Example, ...]
    rows: int


def held_out_rows(config: Config, reader: Processor, pool: MathsPool | None) -> list[HeldOut]:
    """Reads the held-out rows of all stages, as many of each file and spread over the whole of it.

    Raises:
        MixtureError: a row cannot be read.
        ImageError: an image cannot be shown.
        RowError: a row cannot be scored.
    """
    wording, hosts, host = load_template(config.data.template), jax.process_count(), jax.process_index()
    data = dataclasses.replace(config.data, pass_rates="", on_bad_row=OnBadRow.ERROR)
    sets = []
    for number, stage in enumerate(config.stages):
        if not stage.held_out:
            continue
        judged = Stage(stage.name, stage.held_out, kinds=stage.kinds, tasks=stage.tasks)
        mixed = load_mixture([judged], 0, data, config.seed)
        share = -(-config.logging.evaluate_rows // len(mixed.sources))
        places = [(part.file, int(index)) for part in mixed.sources for index in _spread(part.indices, share)]
        if errors := check_rows([file[index] for file, index in places], config.rewards, pool=pool):
            raise errors[0]
        own = [places[min(place, len(places) - 1)] for place in range(host, -(-len(places) // hosts) * hosts, hosts)]
        examples = tuple(make_example(file[i], reader, wording, location=file.location(i)) for file, i in own)
        sets.append(HeldOut(stage.name, number, examples, len(places)))
        mixed.close()
    return sets


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))]


def measure(
    context: Context, params: Parameters, sets: Sequence[HeldOut], stage: str, step: int, *, greedy: bool
) -> list[Measurement]:
    """One answer to every held-out row at the sampling temperature and, if wanted, the likeliest one.

    Args:
        context: of the stage.
        params: of the policy, in the model's precision.
        sets: from `held_out_rows`.
        stage: that is trained.
        step: of it.
        greedy: whether the likeliest answers are wanted, too.
    """
    weights = decode_params(context.model, params, context.config.sampling)
    seen = []
    for it in sets:
        drawn = _answers(context, params, weights, it, context.config.sampling.temperature)
        likeliest = _answers(context, params, weights, it, 0.0) if greedy else None
        seen.append(
            Measurement(
                stage=stage,
                step=step,
                held_out=it.name,
                rows=it.rows,
                reward=float(drawn["reward"].mean()),
                error=float(drawn["reward"].std(ddof=1) / np.sqrt(it.rows)) if it.rows > 1 else 0.0,
                accuracy=_mean(drawn.get("accuracy")),
                format=_mean(drawn.get("format")),
                passed=int((drawn["accuracy"] == 1).sum()) if "accuracy" in drawn else None,
                greedy=_mean(likeliest["reward"]) if likeliest else None,
            )
        )
    return seen


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


def _answers(
    context: Context, params: Parameters, weights: Parameters, held_out: HeldOut, temperature: float
) -> dict[str, np.ndarray]:
    config = context.config
    settings = dataclasses.replace(config.sampling, group_size=1, temperature=temperature)
    size = config.data.batch_size * config.sampling.group_size // jax.process_count()
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, len(held_out.examples), size):
        examples = held_out.examples[start : start + size]
        filled = [*examples, *examples[-1:] * (size - len(examples))]  # one shape for all
        prompts = [it.prompt for it in filled]
        rollout = sample(
            context.model,
            params,
            context.reader,
            prompts,
            settings,
            weights=weights,
            seed=config.seed,
            stage=_STAGE + held_out.number,
        )
        texts, _, _ = completions(context.reader, rollout)
        scores = score(context, examples, texts[: len(examples)])
        parts.append({name: values[:, 0] for name, values in {**scores.parts, "reward": scores.total}.items()})
    joined = everyone({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    hosts = jax.process_count()
    # Hosts took turns; rows that only filled up the last turn are dropped.
    return {name: x.reshape(hosts, -1).T.reshape(-1)[: held_out.rows] for name, x in joined.items()}
