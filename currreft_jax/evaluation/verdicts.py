"""Verdicts of an evaluation: the completions of rows, scored in two readings. Loads no JAX.

*Strict* demands the layout and the tags, as training does: accuracy and format are both full. *Readable* scores the
answer that `evaluation.readable` finds; what is right strictly is right here, too. Right means IoU above 0.5, equal
sets of labels or letters, the same yes or no, or an equivalent expression, by the rewards' own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from currreft_jax.config import DetectionScore, Kind, Maths, Rewards, ScorerName, SuiteDomain, Task
from currreft_jax.evaluation.answers import Answer
from currreft_jax.evaluation.official import official_verdicts
from currreft_jax.evaluation.readable import Found, Reading, read_answer
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.structs import Completion, Frame, Row

VERSION = 2  # of these verdicts; raised whenever one may come out otherwise


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row and its completions.

    Attributes:
        row: with the frame that its boxes are measured in.
        image: key of its images.
        completions: `[G]`.
        frame: the frame of boxes in the completions; None for the row's own.
        failure: why there are none; empty otherwise.
    """

    row: Row
    image: str
    completions: Sequence[Completion]
    frame: Frame | None
    failure: str = ""


def scoring_rewards(aliases: dict[str, str], maths: Maths) -> Rewards:
    """Returns the rewards' settings that decide whether an answer is right: their defaults, with these two."""
    return Rewards(aliases=aliases, maths=maths)


def score_answers(
    answered: Sequence[AnsweredRow],
    settings: Rewards,
    pool: MathsPool,
    *,
    scorer: ScorerName = ScorerName.RULES,
    domain: SuiteDomain = SuiteDomain.IN,
) -> list[Answer]:
    """Scores G completions of each of P rows.

    A row with a failure has no completions, and no verdicts; nor has a conversation, which no rule scores.

    Args:
        answered: the rows, with equally many completions each.
        settings: from `scoring_rewards`.
        pool: math-verify workers.
        scorer: whether to add the authors' verdicts.
        domain: of the suite; the authors score maths in and out of domain in two ways.
    """
    scorable = [not one.failure and one.row.kind is not Kind.CHAT for one in answered]
    with_verdicts = [one for one, is_scorable in zip(answered, scorable, strict=True) if is_scorable]
    scored = iter(_score_completions(with_verdicts, settings, pool, scorer, domain) if with_verdicts else ())
    return [
        next(scored) if is_scorable else _unscored_answer(one)
        for one, is_scorable in zip(answered, scorable, strict=True)
    ]


def _unscored_answer(one: AnsweredRow) -> Answer:
    return Answer(
        *(one.row.id, one.image, one.row.task, one.row.kind),
        tuple(completion.text for completion in one.completions),
        *((),) * 6,
        finished=tuple(completion.finished for completion in one.completions),
        failure=one.failure,
        resized=(one.frame.width, one.frame.height) if one.frame else None,
    )


def _score_completions(
    answered: Sequence[AnsweredRow], settings: Rewards, pool: MathsPool, scorer: ScorerName, domain: SuiteDomain
) -> list[Answer]:
    """Scores rows that have completions; see `score_answers`."""
    rows = [one.row for one in answered]
    group_size = len(answered[0].completions)
    readings = [[read_answer(one.row, completion, settings) for completion in one.completions] for one in answered]
    both = [
        [*one.completions, *map(_completion, read)] for one, read in zip(answered, readings, strict=True)
    ]  # in one call, which compares equal expressions once
    frames = [one.frame for one in answered]
    scores = score_completions(rows, both, settings, frames=frames, pool=pool)
    accuracy = scores.parts["accuracy"]
    graded = _grade_boxes(accuracy, rows, both, frames, settings, pool)
    official: list[tuple[int, ...]] = [()] * len(rows)
    if scorer is ScorerName.OFFICIAL:
        official = official_verdicts(rows, [one.completions for one in answered], domain, settings, pool)
    laid_out = scores.parts["format"][:, :group_size] == 1
    tagged, read = np.split(accuracy, 2, axis=1)
    tagged_score, read_score = np.split(graded, 2, axis=1)
    right = tagged == 1
    strict, strict_score = right & laid_out, tagged_score * laid_out
    readable, readable_score = right | (read == 1), np.where(right, tagged_score, read_score)
    answers = []
    for p, one in enumerate(answered):
        reasons = [scores.reasons["accuracy"][p, g] or scores.reasons["format"][p, g] for g in range(group_size)]
        found = [Found.ANSWER if right[p, g] else reading.found for g, reading in enumerate(readings[p])]
        answers.append(
            Answer(
                row=one.row.id,
                image=one.image,
                task=one.row.task,
                kind=one.row.kind,
                completions=tuple(completion.text for completion in one.completions),
                strict=tuple(map(int, strict[p])),
                readable=tuple(map(int, readable[p])),
                strict_score=tuple(map(float, strict_score[p])),
                readable_score=tuple(map(float, readable_score[p])),
                reasons=tuple(None if ok else str(reason) for ok, reason in zip(strict[p], reasons, strict=True)),
                decided=tuple(map(str, found)),
                finished=tuple(completion.finished for completion in one.completions),
                official=official[p],
                resized=one.frame and (one.frame.width, one.frame.height),
            )
        )
    return answers


def _grade_boxes(
    accuracy: np.ndarray,
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    frames: Sequence[Frame | None],
    settings: Rewards,
    pool: MathsPool,
) -> np.ndarray:
    """Returns the accuracies with the mean IoU in place of those of detection rows."""
    graded = accuracy.copy()
    detection = [p for p, row in enumerate(rows) if (row.kind, row.task) == (Kind.OPEN, Task.DETECTION)]
    if detection:
        scores = score_completions(
            [rows[p] for p in detection],
            [completions[p] for p in detection],
            replace(settings, detection=DetectionScore.SOFT_IOU),
            frames=[frames[p] for p in detection],
            pool=pool,
        )
        graded[detection] = scores.parts["accuracy"]
    return graded


def _completion(reading: Reading) -> Completion:
    """Returns an answer in the layout that the rules read."""
    return Completion(f"<think> read </think> <answer>{reading.answer}</answer>")
