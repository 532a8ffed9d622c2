"""Answers that two judges score differently, as rows with both judgements. Loads no JAX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from currreft_jax.data.prompts import Template
from currreft_jax.judges import Judgement
from currreft_jax.rejection.candidates import CandidateSource
from currreft_jax.rejection.kept_rows import judgement_keys, provenance, training_row
from currreft_jax.rejection.records import Records, answer_key
from currreft_jax.rejection.selection import JudgedAnswer, judged_answers

DISAGREEMENTS = "disagreements.jsonl"


def disagreement_rows(
    sources: Sequence[CandidateSource],
    records: Records,
    threshold: float,
    manifest: dict[str, Any],
    template: Template,
    out: Path,
) -> list[dict[str, Any]]:
    """Returns the answers that the two judges score differently, in the form of kept rows, with `second_judge`.

    Those on other sides of the threshold come first, then those of the largest difference. An answer that the second
    judge leaves unjudged is one that it would not keep.

    Args:
        sources: rows of the sources.
        records: all answers and judgements.
        threshold: overall score above which an answer is kept.
        manifest: of the job.
        template: prompt template.
        out: folder of the file, to which image paths are relative.
    """
    found: list[tuple[tuple[bool, float, str], dict[str, Any]]] = []
    for source in sources:
        for row in source.places:
            for answer in (one for answers in judged_answers(records, source.settings.name, row) for one in answers):
                key = answer_key(source.settings.name, row, answer.sample)
                second = records.judgement(key, records.second_judge) if records.second_judge else None
                if second and answer.overall is not None and second.overall != answer.overall:
                    keys = _row(source, answer, second, records.second_judge, manifest, template, out)
                    found.append((_order(answer.overall, second.overall, threshold, key), keys))
    return [keys for _, keys in sorted(found, key=lambda one: one[0])]


def _order(first: float, second: float | None, threshold: float, key: str) -> tuple[bool, float, str]:
    """Returns what the answers are sorted by, in rising order."""
    passes = second is not None and second > threshold
    return passes == (first > threshold), -abs(first - (second or 0.0)), key


def _row(
    source: CandidateSource,
    answer: JudgedAnswer,
    second: Judgement,
    second_judge: str,
    manifest: dict[str, Any],
    template: Template,
    out: Path,
) -> dict[str, Any]:
    question = source.question(answer.row)
    text, frame = answer.answer.completion.text, answer.group.frame
    return {
        **training_row(question, source.settings.name, text, frame, template, out),
        **provenance(answer, question, manifest),
        "second_judge": {"name": second_judge, **judgement_keys(second)},
    }
