"""Scores the answers of a model to a benchmark, and the file of its verdicts. Loads no JAX.

`OUT/MODEL/SUITE.verdicts.json` has the rules and the judge, the scores of all categories, the units that count (items,
or circular groups), and a verdict for each item with what was read and the judge's raw replies. It is made anew from
the answers file whenever an evaluation ends: other rules or another judge need no new answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from currreft_jax.config import BenchmarkName, Extraction, Judge, JudgeKind, Rewards
from currreft_jax.evaluation.answers import Answer
from currreft_jax.evaluation.benchmarks import judge_prompts, scorers
from currreft_jax.evaluation.benchmarks.aggregates import CategoryScore, ScoredUnit, score_units, summarize
from currreft_jax.evaluation.benchmarks.files import LoadedBenchmark
from currreft_jax.evaluation.benchmarks.items import BenchmarkItem, BenchmarkVerdict, Decision
from currreft_jax.evaluation.benchmarks.judge import BenchmarkJudge, judge_undecided
from currreft_jax.evaluation.benchmarks.rows import maths_row
from currreft_jax.evaluation.verdicts import VERSION as MATHS_VERSION
from currreft_jax.evaluation.verdicts import AnsweredRow, score_answers
from currreft_jax.rewards import MathsPool
from currreft_jax.structs import Completion

SUFFIX = ".verdicts.json"


@dataclass(frozen=True, slots=True)
class BenchmarkScores:
    """The content of a verdicts file.

    Attributes:
        benchmark: its name, as in settings.
        published: name of the published file; empty if it is none that is known.
        rules: name, version and extraction of the rules, and model and prompts of the judge, if there is one.
        scores: overall, then of each category.
        units: what counts once each.
    """

    benchmark: str
    published: str
    rules: dict[str, Any]
    scores: tuple[CategoryScore, ...]
    units: tuple[ScoredUnit, ...]


def verdicts_path(answers: Path) -> Path:
    """Returns the path of the verdicts on an answers file."""
    return answers.with_suffix(SUFFIX)


def score_benchmark(
    benchmark: LoadedBenchmark,
    answers: Sequence[Answer],
    extraction: Extraction,
    judge: BenchmarkJudge | None,
    settings: Rewards,
    pool: MathsPool,
) -> dict[str, BenchmarkVerdict]:
    """Scores an answer to each item, by the rules, then by the judge; returns the verdicts by the items' keys.

    Raises:
        EndpointError: some judgements are missing.
    """
    completions = {
        answer.row: Completion(answer.completions[0], finished=answer.finished[0])
        for answer in answers
        if not answer.failure
    }
    answered = [item for item in benchmark.items if item.key in completions]
    failures = {answer.row: answer.failure for answer in answers if answer.failure}
    verdicts = {key: BenchmarkVerdict(key, None, Decision.FAILED, failure) for key, failure in failures.items()}
    if benchmark.name is BenchmarkName.MATH:
        verdicts |= _score_maths(answered, completions, settings, pool)
    else:
        score = scorers.SCORERS[benchmark.name]
        verdicts |= {item.key: score(item, completions[item.key], extraction) for item in answered}
        if judge:
            verdicts = judge_undecided(benchmark.name, benchmark.items, completions, verdicts, judge)
    return verdicts


def _score_maths(
    items: Sequence[BenchmarkItem], completions: Mapping[str, Completion], settings: Rewards, pool: MathsPool
) -> dict[str, BenchmarkVerdict]:
    """Scores the readable reading by the rewards' rules: right if an expression is equivalent to the gold one."""
    rows = [AnsweredRow(maths_row(item), "", (completions[item.key],), None) for item in items]
    scored = score_answers(rows, settings, pool) if rows else []
    verdicts = {}
    for answer in scored:
        is_read = answer.readable[0] or answer.decided[0] != "none"
        verdicts[answer.row] = BenchmarkVerdict(
            answer.row,
            float(answer.readable[0]) if is_read else None,
            Decision.RULE if is_read else Decision.UNDECIDED,
            answer.decided[0],
        )
    return verdicts


def write_verdicts(
    path: Path,
    benchmark: LoadedBenchmark,
    answers: Sequence[Answer],
    verdicts: Mapping[str, BenchmarkVerdict],
    extraction: Extraction,
    judge: Judge,
) -> None:
    """Writes the verdicts file, whole or not at all."""
    units = score_units(benchmark.items, verdicts, {answer.row: answer.image for answer in answers})
    content = {
        "benchmark": benchmark.name.value,
        "published": benchmark.published,
        "rules": rules_facts(benchmark.name, extraction, judge),
        "scores": [asdict(score) | {"relative": score.relative} for score in summarize(units)],
        "units": [asdict(unit) for unit in units],
        "verdicts": [asdict(verdicts[item.key]) for item in benchmark.items],
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(path)


def rules_facts(name: BenchmarkName, extraction: Extraction, judge: Judge) -> dict[str, Any]:
    """Returns what a verdicts file says of rules and judge."""
    if name is BenchmarkName.MATH:
        return {"name": "maths", "version": MATHS_VERSION}
    by_model = judge.kind is JudgeKind.ENDPOINT
    facts = {"model": judge.model, "url": judge.url, "prompts": judge_prompts.PROMPT_VERSION} if by_model else None
    name_of_rules = extraction.value if extraction is Extraction.READABLE else f"vlmevalkit-{extraction.value}"
    return {"name": name_of_rules, "version": scorers.VERSION, "judge": facts}


def read_verdicts(path: Path) -> BenchmarkScores:
    """Reads a verdicts file.

    Raises:
        ValueError: the file is damaged, or of another version.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        scores = [CategoryScore(**{k: v for k, v in score.items() if k != "relative"}) for score in content["scores"]]
        units = [
            ScoredUnit(**unit | {"decision": Decision(unit["decision"]), "categories": tuple(unit["categories"])})
            for unit in content["units"]
        ]
        return BenchmarkScores(
            *(str(content["benchmark"]), str(content["published"]), content["rules"], tuple(scores), tuple(units))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} has no verdicts of this version ({error!r}); evaluate again, which makes it"
        ) from error
