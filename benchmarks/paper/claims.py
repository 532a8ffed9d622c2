"""The claims, and what the finished runs say of each: holds, does not hold, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scipy import stats

from benchmarks.paper.measures import IN, OUT, FinishedRuns, last_window_oscillation, rows_difference, seeds_difference
from currreft_jax.evaluation.statistics import ClaimVerdict, Interval, PairedDifference, holm, judge_claim

OSCILLATION = "oscillation"
ALPHA = 0.05
MARGIN = 0.02  # what "costs little" and "does as well" allow


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """A claim about two arms.

    Attributes:
        text: the claim.
        first: name of the arm that is compared with.
        second: name of the arm that the claim is about.
        column: of greedy accuracy, or the oscillation.
        higher: false for the claim that the second is lower.
        margin: what may be missing to the first.
    """

    text: str
    first: str
    second: str
    column: str
    higher: bool = True
    margin: float = 0.0


CLAIMS = (
    PaperClaim("RL generalises better than SFT: it is above it out of domain", "sft", "rl", OUT),
    PaperClaim("SFT falls below the base out of domain", "base", "sft", OUT, higher=False),
    PaperClaim("RL is above the base out of domain", "base", "rl", OUT),
    PaperClaim("the curriculum beats RL on open rows alone in domain", "rl", "curr_rl", IN),
    PaperClaim("the curriculum beats RL on open rows alone out of domain", "rl", "curr_rl", OUT),
    PaperClaim("its order matters: it beats the same mixture in random order, out of domain", "mixed", "curr_rl", OUT),
    PaperClaim("its direction matters: it beats the reversed order, out of domain", "reversed", "curr_rl", OUT),
    PaperClaim(
        "it tames the brick wall: it oscillates less than RL on open rows alone",
        "rl",
        "curr_rl",
        OSCILLATION,
        higher=False,
    ),
    PaperClaim("self-improvement costs at most 2 points in domain", "curr_rl", "curr_reft", IN, margin=MARGIN),
    PaperClaim("the whole method is above the base out of domain", "base", "curr_reft", OUT),
    PaperClaim(
        "difficulty-filtered SFT does as well as RL out of domain, within 2 points",
        "rl",
        "sft_filtered",
        OUT,
        margin=MARGIN,
    ),
)
CONTROL = PaperClaim("shuffled rewards teach nothing: the control is not above the base", "base", "shuffled", IN)
DIAL = PaperClaim("the curriculum beats RL on open rows alone out of domain", "rl", "curr_rl", OUT)
DIAL_ORDER = PaperClaim("the curriculum beats the same mixture in random order out of domain", "mixed", "curr_rl", OUT)


class JudgedClaim(NamedTuple):
    """A claim and its verdict.

    Attributes:
        claim: the claim.
        effect: second minus first; None if a run is missing.
        p_holm: p-value of no effect, or of an effect as large as the margin, by Holm's method.
        verdict: by the interval and Holm's p-value.
    """

    claim: PaperClaim
    effect: PairedDifference | None
    p_holm: float
    verdict: ClaimVerdict


def estimate_effect(
    comparison: FinishedRuns, world: str, claim: PaperClaim, *, sampled: bool = False
) -> PairedDifference | None:
    """Estimates second minus first: over seeds where there are several, else over the rows of the only one."""
    seeds = comparison.seeds(world, claim.first, claim.second)
    pairs = [(comparison.runs[world, claim.first, seed], comparison.runs[world, claim.second, seed]) for seed in seeds]
    if not pairs:
        return None
    if claim.column == OSCILLATION:
        steps = comparison.plan["stage_steps"]
        return seeds_difference(
            [last_window_oscillation(second, steps) - last_window_oscillation(first, steps) for first, second in pairs]
        )
    scores = [
        ((first.sampled, second.sampled) if sampled else (first.greedy, second.greedy)) for first, second in pairs
    ]
    columns = [(first[claim.column], second[claim.column]) for first, second in scores]
    if len(columns) == 1:
        return rows_difference(*columns[0])
    return seeds_difference([float(second.accuracy.mean() - first.accuracy.mean()) for first, second in columns])


def judge_claims(comparison: FinishedRuns, world: str, claims: Sequence[PaperClaim] = CLAIMS) -> list[JudgedClaim]:
    """Judges the claims of a world, which are one table for Holm's method.

    A claim holds, or does not, if the effect's interval says so (`statistics.judge_claim`) and its p-value by Holm's
    method is below 0.05; otherwise it is undecided. With a margin, the interval is moved by it.
    """
    return _judge([(claim, estimate_effect(comparison, world, claim)) for claim in claims])


def judge_on_worlds(comparison: FinishedRuns, worlds: Sequence[str], claim: PaperClaim) -> list[JudgedClaim]:
    """Judges a claim on each world, like the claims of one world: the worlds are one table for Holm's method."""
    return _judge([(claim, estimate_effect(comparison, world, claim)) for world in worlds])


def _judge(effects: Sequence[tuple[PaperClaim, PairedDifference | None]]) -> list[JudgedClaim]:
    moved = [effect and _moved(effect, claim) for claim, effect in effects]
    p_values = {index: effect.p_value for index, effect in enumerate(moved) if effect}
    p_holm = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        JudgedClaim(claim, effect, p_holm.get(index, 1.0), _verdict(moved[index], claim, p_holm.get(index, 1.0)))
        for index, (claim, effect) in enumerate(effects)
    ]


def _moved(effect: PairedDifference, claim: PaperClaim) -> PairedDifference:
    """Returns the effect beyond the margin, whose p-value is that of no such effect, by the interval's own error."""
    if not claim.margin:
        return effect
    difference = effect.difference + claim.margin
    if effect.interval is None:
        return replace(effect, difference=difference, p_value=1.0)
    interval = Interval(*(bound + claim.margin for bound in effect.interval))
    return replace(
        effect, difference=difference, interval=interval, p_value=_p_of_interval(difference, interval, effect)
    )


def _p_of_interval(difference: float, interval: Interval, effect: PairedDifference) -> float:
    """Computes the p-value of no difference that belongs to a 95% interval, by Student's t over as many clusters."""
    freedom = effect.clusters - 1
    half = (interval.high - interval.low) / 2
    if not half:
        return float(difference == 0)
    return float(2 * stats.t.sf(abs(difference) / half * stats.t.ppf(0.975, freedom), freedom))


def _verdict(moved: PairedDifference | None, claim: PaperClaim, p_holm: float) -> ClaimVerdict:
    if moved is None or p_holm >= ALPHA:
        return ClaimVerdict.UNDECIDED
    return judge_claim(moved, higher=claim.higher)
