"""The files that a job ends with: kept and held-out rows, disagreements of judges, and the summary. Loads no JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from currreft_jax.config import Rejection
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation.manifest import write_json
from currreft_jax.rejection.candidates import CandidateSource, question_words
from currreft_jax.rejection.disagreements import DISAGREEMENTS, disagreement_rows
from currreft_jax.rejection.kept_rows import is_distilled, provenance, split_held_out, training_row, write_lines
from currreft_jax.rejection.records import Records
from currreft_jax.rejection.selection import KeepRule
from currreft_jax.rejection.summary import select_sources, summarize
from currreft_jax.runtime.workdir import KEPT, KEPT_HELD_OUT

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """The files of a finished job.

    Attributes:
        kept: rows to train on.
        held_out: kept rows that are held out; None if there are none.
        summary: what was kept and why, as JSON.
        num_kept: number of rows to train on.
        num_held_out: number of rows that are held out.
        shortfall: source -> number of rows that its quota lacks; sources that lack none are absent.
    """

    kept: Path
    held_out: Path | None
    summary: Path
    num_kept: int
    num_held_out: int
    shortfall: dict[str, int]


def write_kept_files(
    settings: Rejection,
    out: Path,
    sources: Sequence[CandidateSource],
    records: Records,
    manifest: dict[str, Any],
    log: Callable[[str], None],
) -> KeptFiles:
    """Selects the kept answers and writes the files.

    Args:
        settings: all settings.
        out: folder of the job.
        sources: rows of the sources.
        records: all answers and judgements.
        manifest: of the job.
        log: called with a line for each quota that is not filled.

    Raises:
        ValueError: no answer is kept.
    """
    rule = KeepRule(settings.threshold, settings.require_rules)
    template = load_template(settings.template)
    keyed: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    shortfall: dict[str, int] = {}
    for source, selection in zip(sources, select_sources(sources, records, rule), strict=True):
        if selection.shortfall:
            shortfall[selection.name] = selection.shortfall
            log(
                f"{selection.name}: {len(selection.kept)} of {selection.quota} rows kept, {selection.shortfall} short"
                f" after {settings.max_samples} answers to a row: give it more rows, or raise max_samples"
            )
        for kept in selection.kept:
            question = source.question(kept.row)
            text, frame = kept.answer.completion.text, kept.group.frame
            row = training_row(question, selection.name, text, frame, template, out)
            keys = question.image_keys or (question_words(question.row),)
            keyed.append((keys, row | provenance(kept, question, manifest)))
    train, held_out = split_held_out(keyed, settings.held_out, settings.chosen_seed)
    write_lines(out / KEPT, train)
    write_lines(out / KEPT_HELD_OUT, held_out)
    write_lines(out / DISAGREEMENTS, disagreement_rows(sources, records, settings.threshold, manifest, template, out))
    summary = summarize(sources, records, rule, distilled=is_distilled(manifest), seed=settings.chosen_seed)
    write_json(out / SUMMARY, summary | {"train": len(train), "held_out": len(held_out), "judge": manifest["judge"]})
    if not train:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary["answers"].items())
        raise ValueError(
            f"no answer is kept above {rule.threshold:g} ({reasons}): see {out / SUMMARY}, and lower the threshold,"
            " raise max_samples, or answer with a better model"
        )
    return KeptFiles(
        out / KEPT, out / KEPT_HELD_OUT if held_out else None, out / SUMMARY, len(train), len(held_out), shortfall
    )
