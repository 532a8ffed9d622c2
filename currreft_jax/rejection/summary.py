"""What a job kept and why: composition, reasons, sweep over thresholds, judge against rules. Loads no JAX."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from currreft_jax.judges import PlantedFault, compare_judges, length_correlation
from currreft_jax.rejection.candidates import CandidateSource
from currreft_jax.rejection.records import Records
from currreft_jax.rejection.selection import JudgedAnswer, KeepRule, SourceSelection, judged_answers, select

THRESHOLDS = tuple(range(50, 100, 5))
_BIN = 5  # points


def select_sources(sources: Sequence[CandidateSource], records: Records, rule: KeepRule) -> list[SourceSelection]:
    """Selects the kept answers of all sources."""
    return [
        select(source.settings.name, source.settings.group, source.settings.quota, list(source.places), records, rule)
        for source in sources
    ]


def summarize(
    sources: Sequence[CandidateSource], records: Records, rule: KeepRule, *, distilled: bool, seed: int
) -> dict[str, Any]:
    """Returns the content of the summary.

    Args:
        sources: rows of the sources.
        records: all answers and judgements.
        rule: when an answer is kept.
        distilled: whether another model than the trained one answered.
        seed: of the interval of the second judge's agreement.
    """
    selections = select_sources(sources, records, rule)
    answers = [
        answer
        for source in sources
        for row in source.places
        for own in judged_answers(records, source.settings.name, row)
        for answer in own
    ]
    return {
        "distilled": distilled,
        "threshold": rule.threshold,
        "require_rules": rule.require_rules,
        "kept": sum(len(selection.kept) for selection in selections),
        "quota": sum(selection.quota for selection in selections),
        "shortfall": sum(selection.shortfall for selection in selections),
        "sources": [
            {**_source_facts(selection), "dropped": source.dropped_counts()}
            for source, selection in zip(sources, selections, strict=True)
        ],
        "groups": _groups(selections),
        "answers": {"sampled": len(answers), **sum((selection.reasons for selection in selections), Counter[str]())},
        "histogram": _histogram(answers),
        "score_length_correlation": length_correlation(*_scores_and_lengths(answers)),
        "calibration": _calibration(records, rule.threshold),
        "second_judge": _second_judge(records, rule.threshold, seed),
        "judge_against_rules": _confusion(answers, rule.threshold),
        "sweep": [_sweep_row(sources, records, rule, threshold) for threshold in THRESHOLDS],
    }


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a summary."""
    return json.loads(path.read_text("utf-8"))


def summary_tables(summary: dict[str, Any]) -> str:
    """Returns the tables of a summary for people."""
    sources = [
        (*(source[key] for key in ("source", "group", "rows", "sampled", "kept", "quota", "shortfall")),)
        for source in [*summary["sources"], *summary["groups"]]
    ]
    heading = ("source", "group", "rows", "answered", "kept", "quota", "short")
    parts = [_table(heading, sources)]
    counts = ", ".join(f"{reason} {count}" for reason, count in summary["answers"].items())
    parts.append(f"answers: {counts}")
    parts.append(_table(("scores", "answers"), list(summary["histogram"].items())))
    confusion = summary["judge_against_rules"]
    parts.append(
        f"judge against rules, {confusion['checked']} answers that can be checked: above the threshold"
        f" {confusion['above_right']} right and {confusion['above_wrong']} wrong; not above it"
        f" {confusion['below_right']} right and {confusion['below_wrong']} wrong"
    )
    if calibration := summary["calibration"]:
        parts.append(f"calibration by answers planted for {calibration['rows']} rows\n{calibration['table']}")
    if second := summary["second_judge"]:
        parts.append(_agreement_line(second))
    sweep_heading = (
        "above",
        "kept",
        "short",
        "quotas filled",
        "wrong by rules",
        "planted faults passed",
        "mean length",
    )
    keys = ("threshold", "kept", "shortfall", "filled", "wrong_share", "planted_share", "mean_length")
    parts.append(_table(sweep_heading, [tuple(row[key] for key in keys) for row in summary["sweep"]]))
    head = f"kept {summary['kept']} rows above {summary['threshold']:g}"
    head += "; answers of another model: distillation" if summary["distilled"] else ""
    return "\n\n".join([head, *parts])


def _agreement_line(second: dict[str, Any]) -> str:
    if second["kappa"] is None:
        return f"second judge {second['judge']}: {second['answers']} answers are too few, or too alike, to compare"
    low, high = second["interval"] or (None, None)
    interval = "" if low is None else f", 95% interval {low:.2f} to {high:.2f}"
    return (
        f"second judge {second['judge']}: {second['answers']} answers, weighted kappa {second['kappa']:.2f}{interval};"
        f" {second['same_side']:.0%} on the same side of the threshold"
    )


def _source_facts(selection: SourceSelection) -> dict[str, Any]:
    return {
        "source": selection.name,
        "group": selection.group,
        "quota": selection.quota,
        "rows": selection.rows,
        "sampled": selection.sampled,
        "kept": len(selection.kept),
        "shortfall": selection.shortfall,
        "reasons": dict(selection.reasons),
        "failures": dict(selection.failures),
    }


def _groups(selections: Sequence[SourceSelection]) -> list[dict[str, Any]]:
    """Returns the sums of each group of sources."""
    totals: dict[str, dict[str, Any]] = {}
    for selection in selections:
        if selection.group:
            facts = _source_facts(selection)
            total = totals.setdefault(selection.group, {"source": "all", "group": selection.group})
            for key in ("rows", "sampled", "kept", "quota", "shortfall"):
                total[key] = total.get(key, 0) + facts[key]
    return list(totals.values())


def _histogram(answers: Sequence[JudgedAnswer]) -> dict[str, int]:
    """Counts overall scores in bins of five points; the last one includes 100."""
    bins = Counter(min(int(one.overall // _BIN), 100 // _BIN - 1) for one in answers if one.overall is not None)
    return {f"{index * _BIN}-{(index + 1) * _BIN}": bins[index] for index in range(100 // _BIN) if bins[index]}


def _scores_and_lengths(answers: Sequence[JudgedAnswer]) -> tuple[list[float], list[int]]:
    scored = [(one.overall, one.length) for one in answers if one.overall is not None]
    return [score for score, _ in scored], [length for _, length in scored]


def _planted_share(records: Records, threshold: float) -> float | None:
    """Returns the share of planted faults that the judge scores above a threshold."""
    calibration = records.calibration
    if calibration is None or not calibration.rows:
        return None
    faults = [fault for fault in PlantedFault if fault is not PlantedFault.NONE]
    passed = sum(calibration.passed(fault, threshold) for fault in faults)
    return round(passed / sum(len(calibration.scores[fault]) for fault in faults), 4)


def _calibration(records: Records, threshold: float) -> dict[str, Any] | None:
    calibration = records.calibration
    if calibration is None:
        return None
    return {
        "rows": calibration.rows,
        "left_out": calibration.left_out,
        "planted": {
            fault.value: {
                "answers": len(scores),
                "unjudged": scores.count(None),
                "above_threshold": calibration.passed(fault, threshold),
            }
            for fault, scores in calibration.scores.items()
        },
        "table": calibration.table(threshold),
    }


def _second_judge(records: Records, threshold: float, seed: int) -> dict[str, Any] | None:
    """Returns the agreement of the second judge with the first."""
    name = records.second_judge
    if not name:
        return None
    first, second = records.judgements(), records.judgements(name)
    return {"judge": name, **asdict(compare_judges(first, second, threshold=threshold, seed=seed))}


def _confusion(answers: Sequence[JudgedAnswer], threshold: float) -> dict[str, int]:
    """Counts judged answers whose gold can be checked by judge and rules."""
    checked = Counter(
        (one.overall > threshold, one.answer.right)
        for one in answers
        if one.overall is not None and one.answer.right is not None
    )
    return {
        "checked": checked.total(),
        "above_right": checked[True, True],
        "above_wrong": checked[True, False],
        "below_right": checked[False, True],
        "below_wrong": checked[False, False],
    }


def _sweep_row(
    sources: Sequence[CandidateSource], records: Records, rule: KeepRule, threshold: float
) -> dict[str, Any]:
    """Returns what another threshold would keep, of the answers that there are."""
    selections = select_sources(sources, records, replace(rule, threshold=threshold))
    kept = [answer for selection in selections for answer in selection.kept]
    unchecked = select_sources(sources, records, KeepRule(threshold, require_rules=False))
    verdicts = [one.answer.right for selection in unchecked for one in selection.kept if one.answer.right is not None]
    return {
        "threshold": threshold,
        "kept": len(kept),
        "shortfall": sum(selection.shortfall for selection in selections),
        "filled": sum(not selection.shortfall for selection in selections),
        "sources": {selection.name: len(selection.kept) for selection in selections},
        # Of the answers that the judge alone would keep.
        "wrong_share": round(1 - fmean(verdicts), 4) if verdicts else None,
        "planted_share": _planted_share(records, threshold),
        "mean_length": round(fmean(one.length for one in kept), 1) if kept else None,
    }


def _table(heading: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats rows under a heading; numbers to the right, nothing for None."""
    cells = [list(heading), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    is_number = [all(not isinstance(row[column], str) for row in rows) for column in range(len(heading))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in cells
    )


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
