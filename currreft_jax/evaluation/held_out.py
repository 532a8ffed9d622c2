"""Held-out rows, in and out of a stage's domain: read once, answered by the current policy as often as needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from currreft_jax.config import OnBadRow, Stage, SuiteDomain, evaluation_batch_size
from currreft_jax.data.examples import Example, make_example
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation.measurement import Measurement
from currreft_jax.evaluation.scoring import ScoredRollout, score_rollout
from currreft_jax.models.qwen2_5_vl import Parameters
from currreft_jax.rewards import check_rows
from currreft_jax.rewards.registry import own_rewards
from currreft_jax.runtime.multihost import allgather
from currreft_jax.sampling.sampler import decode_params, sample
from currreft_jax.session.session import Session

# Held-out rows are sampled under stage numbers that no run has, and with the same keys at every evaluation, so that two
# evaluations differ by the policy alone.
_FIRST_STAGE = 1 << 20


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out rows of a stage, or those out of its domain.

    Attributes:
        stage: its name.
        stage_index: its place in the curriculum.
        examples: this host's; the last one may be repeated, so that all hosts have as many.
        rows: number over all hosts.
        images: key of the images of each row, of all hosts.
        domain: whether the rows are of the stage's domain.
    """

    stage: str
    stage_index: int
    examples: tuple[Example, ...]
    rows: int
    images: tuple[str, ...] = ()
    domain: SuiteDomain = SuiteDomain.IN

    @property
    def name(self) -> str:
        """Name in metrics and measurements: the stage's for rows of its domain."""
        return self.stage if self.domain is SuiteDomain.IN else f"{self.stage}/out_of_domain"


def held_out_rows(session: Session) -> list[HeldOut]:
    """Reads the held-out rows of all stages, and those out of domain: equally many of each file, spread evenly over it.

    Raises:
        MixtureError: a row cannot be read.
        ImageError: an image cannot be shown.
        RowError: a row cannot be scored.
    """
    config, num_hosts, host = session.config, jax.process_count(), jax.process_index()
    data = dataclasses.replace(config.data, pass_rates="", on_bad_row=OnBadRow.ERROR)
    prompt_template = load_template(config.data.template)
    sets = []
    evaluated = [(index, *item) for index, stage in enumerate(config.stages) for item in stage.evaluated.items()]
    for stage_index, domain, sources in evaluated:
        stage = config.stages[stage_index]
        mixed = load_mixture([Stage(stage.name, sources, kinds=stage.kinds, tasks=stage.tasks)], 0, data, config.seed)
        rows_per_file = -(-config.logging.evaluate_rows // len(mixed.sources))
        rows = [(part.file, int(i)) for part in mixed.sources for i in spread(part.indices, rows_per_file)]
        errors = check_rows([file[i] for file, i in rows], config.rewards, pool=session.reward_pool)
        if errors:
            raise errors[0]
        rounds = -(-len(rows) // num_hosts)  # hosts take turns
        own = [rows[min(turn * num_hosts + host, len(rows) - 1)] for turn in range(rounds)]
        examples = tuple(
            make_example(file[i], session.processor, prompt_template, location=file.location(i)) for file, i in own
        )
        images = tuple("\0".join(file[i].images) for file, i in rows)
        sets.append(HeldOut(stage.name, stage_index, examples, len(rows), images, domain))
        mixed.close()
    return sets


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Takes indices at even distances, at most `count`."""
    return indices[np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))]


def measure(
    session: Session,
    params: Parameters,
    sets: Sequence[HeldOut],
    stage: str,
    step: int,
    *,
    greedy: bool,
    on_answers: Callable[[int], object] | None = None,
    on_greedy: Callable[[HeldOut, int, ScoredRollout], object] | None = None,
) -> list[Measurement]:
    """Answers every held-out row once at the sampling temperature and, if wanted, once greedily.

    Args:
        session: a session with a reward pool.
        params: policy parameters, in the model's precision.
        sets: from `held_out_rows`.
        stage: the stage in training.
        step: step number within the stage.
        greedy: whether greedy answers are wanted, too.
        on_answers: called after each batch with the number of its answers, over all hosts.
        on_greedy: called after each batch of greedy answers with its set, the index of its first example among this
            host's, and its answers.
    """
    decoding_params = decode_params(session.model, params, session.config.sampling)
    own_names, measurements = own_rewards(session.config.rewards), []
    for held_out in sets:
        answer = partial(_rewards, session, params, decoding_params, held_out, on_answers=on_answers)
        sampled = answer(session.config.sampling.temperature)
        greedily = answer(0.0, on_scored=on_greedy and partial(on_greedy, held_out)) if greedy else None
        reward, accuracy = sampled["reward"], sampled.get("accuracy")
        has_accuracy = accuracy is not None and not np.isnan(accuracy).all()
        measurements.append(
            Measurement(
                stage=stage,
                step=step,
                held_out=held_out.name,
                rows=held_out.rows,
                reward=float(reward.mean()),
                error=float(reward.std(ddof=1) / np.sqrt(held_out.rows)) if held_out.rows > 1 else 0.0,
                accuracy=_mean(accuracy),
                format=_mean(sampled.get("format")),
                passed=int((accuracy == 1).sum()) if has_accuracy else None,
                greedy=_mean(greedily["reward"]) if greedily else None,
                rewards=tuple(map(float, reward)),
                domain=held_out.domain.value,
                own={name: mean for name in own_names if (mean := _mean(sampled[name])) is not None},
            )
        )
    return measurements


def _mean(values: np.ndarray | None) -> float | None:
    """Returns the mean over the rows that a reward applies to; None without any."""
    return None if values is None or np.isnan(values).all() else float(np.nanmean(values))


def _rewards(
    session: Session,
    params: Parameters,
    decoding_params: Parameters,
    held_out: HeldOut,
    temperature: float,
    *,
    on_answers: Callable[[int], object] | None,
    on_scored: Callable[[int, ScoredRollout], object] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the rewards of one answer to each row, and their parts by name: `[rows]` each, over all hosts."""
    config, num_hosts = session.config, jax.process_count()
    settings = dataclasses.replace(config.sampling, group_size=1, temperature=temperature)
    batch_size = evaluation_batch_size(config) // num_hosts
    batches: list[dict[str, np.ndarray]] = []
    for start in range(0, len(held_out.examples), batch_size):
        examples = held_out.examples[start : start + batch_size]
        padded = [*examples, *examples[-1:] * (batch_size - len(examples))]  # one shape for all batches
        rollout = sample(
            session.model,
            params,
            session.processor,
            [one.prompt for one in padded],
            settings,
            weights=decoding_params,
            seed=config.seed,
            stage=_FIRST_STAGE + held_out.stage_index,
        )
        if on_answers:
            on_answers(min(num_hosts * len(examples), held_out.rows - num_hosts * start))
        scored = score_rollout(session, examples, rollout)
        if on_scored:
            on_scored(start, scored)
        scores = scored.scores
        batches.append({name: values[:, 0] for name, values in {**scores.parts, "reward": scores.total}.items()})
    gathered = allgather({name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})
    # Back in the order of the rows, without the repeated ones.
    return {name: x.reshape(num_hosts, -1).T.reshape(-1)[: held_out.rows] for name, x in gathered.items()}
