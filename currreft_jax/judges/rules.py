"""The judge of the rewards' rules: a score from 0 to 100 without a network. Loads no JAX."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from currreft_jax.config import DetectionScore, Kind, Rewards
from currreft_jax.judges.judgement import CriterionScores, Judged, Judgement, Unjudged, overall_score
from currreft_jax.rewards import MathsPool, has_rule, score_completions
from currreft_jax.rewards.penalties import repetition_penalty
from currreft_jax.rewards.registry import find_reward, own_rewards
from currreft_jax.structs import Completion, Row

RULES_VERSION = "rules-1"  # of the table in docs/judges.md
_BATCH_SIZE = 32  # answers that are compared together, by all workers of the pool
_REPEATS_FACTOR = 2.0  # fluency lost for a share of repeated n-grams: 30% of them leave 40, and no more than 85 overall
_LENGTH_PENALTIES = ("length", "overlong")


class RulesJudge:
    """Scores answers by the rewards' rules; an `AnswerJudge`.

    Only an answer that is right, well laid out, whole and not repetitive scores above 85: wrong ones have 75 at most,
    as have right ones in another layout.

    Attributes:
        facts: what manifest and provenance say of the judge.
    """

    def __init__(self, rewards: Rewards, pool: MathsPool) -> None:
        """Chooses the rewards that are scored.

        Args:
            rewards: the settings of the rules. Of the penalties on length, those with a weight count; so do rewards of
                one's own, for open rows of task `other`.
            pool: compares mathematical answers.

        Raises:
            ValueError: there is no reward of a name.
        """
        self.facts = {"kind": "rules", "model": "", "prompt_version": RULES_VERSION}
        self._penalties = [name for name in _LENGTH_PENALTIES if rewards.weights.get(name)]
        weights = dict.fromkeys(["format", *self._penalties], 1.0)
        self._rewards = dataclasses.replace(verifying_rewards(rewards), weights={"accuracy": 1.0, **weights})
        self._own = {name: rewards.weights[name] for name in own_rewards(rewards)}
        bounds = {name: find_reward(name, rewards) for name in self._own}
        self._most = {
            name: max(weight * bounds[name].low, weight * bounds[name].high) for name, weight in self._own.items()
        }
        self._own_rewards = dataclasses.replace(rewards, weights=weights | self._own)
        self._pool = pool
        self._counts: Counter[str] = Counter()

    def judge(self, answers: Iterable[Judged]) -> Iterator[Judgement]:
        """Judges answers in their order.

        Raises:
            RowError: the gold answer of a row cannot be read.
            RewardError: a penalty on length has a weight, and the length of an answer is unknown.
        """
        remaining = iter(answers)
        while batch := list(islice(remaining, _BATCH_SIZE)):
            yield from self._judge_batch(batch)

    def summary(self) -> str:
        """Describes the answers so far in one line."""
        unjudged = self._counts[Unjudged.NO_RULE]
        return (
            f"rules: {self._counts['judged']:,} answers judged, {self._counts['right']:,} of them right;"
            f" {unjudged:,} of rows that no rule scores"
        )

    def close(self) -> None:
        """Does nothing: the pool is the caller's."""

    def _judge_batch(self, answers: Sequence[Judged]) -> Iterator[Judgement]:
        by_rule = [answer for answer in answers if has_rule(answer.row)]
        by_own = [answer for answer in answers if not has_rule(answer.row) and can_judge(answer.row, self._own_rewards)]
        scored = self._score(by_rule, self._rewards) | self._score(by_own, self._own_rewards)
        for answer in answers:
            if answer.key not in scored:
                self._counts[Unjudged.NO_RULE] += 1
                rationale = f"no rule scores {answer.row.kind.value} rows: let a model judge them"
                yield Judgement(answer.key, None, None, rationale, unjudged=Unjudged.NO_RULE)
                continue
            parts, reasons = scored[answer.key]
            self._counts["judged"] += 1
            self._counts["right"] += parts["accuracy"] == 1
            yield self._judgement(answer, parts, reasons)

    def _score(self, answers: Sequence[Judged], rewards: Rewards) -> dict[str, tuple[dict[str, float], dict[str, str]]]:
        """Returns the rewards of each answer, by its key, and the reasons of those that are not full."""
        scores = score_completions(
            [answer.row for answer in answers],
            [[answer.completion] for answer in answers],
            rewards,
            frames=[answer.frame for answer in answers],
            pool=self._pool,
        )
        scored = {}
        for index, answer in enumerate(answers):
            parts = {name: float(values[index, 0]) for name, values in scores.parts.items()}
            if "accuracy" not in parts:
                parts = {"accuracy": self._own_accuracy(parts), **parts}
            reasons = {name: values[index, 0] for name, values in scores.reasons.items() if values[index, 0]}
            scored[answer.key] = parts, reasons
        return scored

    def _own_accuracy(self, parts: dict[str, float]) -> float:
        """Returns the weighted sum of the rewards of one's own that apply, as a share of the most that they pay."""
        names = [name for name in self._own if not math.isnan(parts[name])]
        most = sum(self._most[name] for name in names)
        return max(0.0, sum(self._own[name] * parts[name] for name in names) / most) if most > 0 else 0.0

    def _judgement(self, answer: Judged, parts: dict[str, float], reasons: dict[str, str]) -> Judgement:
        """Maps rewards to scores; the table is in docs/judges.md."""
        # An answer repeats the end of the thoughts, and must: a list of labels or boxes would cost fluency.
        thoughts = Completion(answer.completion.text.partition("<answer>")[0])
        repetition = repetition_penalty(thoughts, self._rewards.repetition).value
        losses = _REPEATS_FACTOR * repetition + sum(parts[name] for name in self._penalties)
        scores = CriterionScores(
            accuracy=100 * parts["accuracy"],
            consistency=100.0 if parts["accuracy"] == 1 else 0.0,  # thoughts that end in a wrong answer went wrong
            format=100 * parts["format"],
            fluency=max(0.0, 100 * (1 + losses)),
        )
        rationale = ", ".join(
            f"{name} {value:g}" + (f" ({reasons[name]})" if name in reasons else "")
            for name, value in (parts | {"repetition": repetition}).items()
        )
        return Judgement(answer.key, scores, overall_score(scores), rationale)


def can_judge(row: Row, rewards: Rewards) -> bool:
    """Says whether a rule scores a row, or, an open one of task `other`, a reward of one's own."""
    return has_rule(row) or (row.kind is not Kind.CHAT and bool(own_rewards(rewards)))


def verifying_rewards(rewards: Rewards) -> Rewards:
    """Returns the settings by which an answer is right if its accuracy is 1.

    `DetectionScore.SOFT_IOU` is 1 for perfect boxes alone; boxes are then right by equation 7.
    """
    soft = rewards.detection is DetectionScore.SOFT_IOU
    return dataclasses.replace(
        rewards,
        weights={"accuracy": 1.0},
        detection=DetectionScore.PAPER if soft else rewards.detection,
    )
