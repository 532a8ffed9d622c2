"""Audits of the judge: planted faults before the first answer, and a second judge on a share of the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

from currreft_jax.config import JudgeKind, Rejection
from currreft_jax.evaluation.suites import SuiteQuestion
from currreft_jax.judges import AnswerJudge, Judged, calibrate, judge_name
from currreft_jax.rejection.candidates import CandidateRows, CandidateSource
from currreft_jax.rejection.records import AnswerGroup, Records, SampledAnswer, answer_key
from currreft_jax.rejection.selection import judged_answers
from currreft_jax.rewards import MathsPool
from currreft_jax.structs import Row


def to_judge(key: str, question: SuiteQuestion, group: AnswerGroup, answer: SampledAnswer) -> Judged:
    """Returns an answer as a judge reads it."""
    images = tuple(Path(path) for path in question.row.images)
    return Judged(key, question.row, images, answer.completion, group.frame)


def ensure_calibration(
    settings: Rejection,
    rows: CandidateRows,
    records: Records,
    judge: AnswerJudge,
    pool: MathsPool,
    log: Callable[[str], None],
) -> None:
    """Calibrates the judge on rows of all sources, unless the ledger has a calibration on as many.

    Args:
        settings: all settings.
        rows: the rows, of which those with a gold answer that the rules can check are used.
        records: of the job.
        judge: the judge.
        pool: compares mathematical answers.
        log: called with a line for people.
    """
    by_source = [_checkable_rows(rows, source, settings.calibration_rows) for source in rows.sources]
    in_turns = (row for turn in zip_longest(*by_source) for row in turn if row)
    chosen = list(islice(in_turns, settings.calibration_rows))
    earlier = records.calibration
    if not chosen or (earlier and earlier.rows + earlier.left_out == len(chosen)):
        return
    log(f"judging answers with planted faults to {len(chosen)} rows")
    records.add_calibration(calibrate(judge, chosen, settings.rewards, pool=pool))
    records.sync()


def judge_again(settings: Rejection, rows: CandidateRows, records: Records, second: AnswerJudge) -> None:
    """Lets a second judge score a share of the answers that the first one scored; nothing is judged twice."""
    name = judge_name(second.facts)
    for judgement in second.judge(_chosen(settings, rows, records, name)):
        records.add_judgement(judgement, name)
    records.sync()


def _chosen(settings: Rejection, rows: CandidateRows, records: Records, name: str) -> Iterator[Judged]:
    assert settings.second_judge  # the caller has opened it
    by_rules = settings.second_judge.kind is JudgeKind.RULES
    for source in rows.sources:
        for row in source.places:
            if by_rules and (source.settings.name, row) not in rows.checkable:
                continue
            for one in chain.from_iterable(judged_answers(records, source.settings.name, row)):
                key = answer_key(source.settings.name, row, one.sample)
                is_chosen = one.overall is not None and _share_of(settings.chosen_seed, key) < settings.second_share
                if is_chosen and records.judgement(key, name) is None:
                    yield to_judge(key, source.question(row), one.group, one.answer)


def _checkable_rows(rows: CandidateRows, source: CandidateSource, count: int) -> list[Row]:
    """Returns the first rows of a source whose gold answers can be checked."""
    checkable = (row for row in source.places if (source.settings.name, row) in rows.checkable)
    return [source.question(row).row for row in islice(checkable, count)]


def _share_of(seed: int, key: str) -> float:
    """Returns a number in [0, 1) that seed and key fix."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest(), "big") / 2**64
