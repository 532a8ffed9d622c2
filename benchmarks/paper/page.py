"""The page of a comparison: tables, figures and verdicts, from the workdirs alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.paper.arms import ARM_BY_NAME
from benchmarks.paper.charts import Bar, Curve, bar_chart, line_chart
from benchmarks.paper.claims import (
    CLAIMS,
    CONTROL,
    DIAL,
    DIAL_ORDER,
    OSCILLATION,
    JudgedClaim,
    PaperClaim,
    estimate_effect,
    judge_claims,
    judge_on_worlds,
)
from benchmarks.paper.measures import (
    IN,
    OUT,
    ColumnScores,
    FinishedRun,
    FinishedRuns,
    last_window_oscillation,
    mean_and_half,
    oscillation,
    read_comparison,
)
from currreft_jax.config.wording import plural
from currreft_jax.evaluation.statistics import ClaimVerdict, Interval, estimate_mean, judge_claim

_TASK_COLUMNS = ("detection in", "math in", "classify in", "detection out", "math out", "classify out")
# The paper's tables -> their arms.
_TABLES = {
    "Table 1: SFT and RL": ("base", "sft", "rl"),
    "Table 2: the method": ("base", "sft", "rl", "curr_reft"),
    "Table 4a: ablation": ("base", "sft", "rl", "curr_rl", "curr_reft"),
    "Controls, which the paper does not have": ("sft_reasoned", "sft_filtered", "mixed", "reversed", "shuffled"),
}
_WIDTH = 124  # of lines of prose
_SMOOTHING = 0.9  # of figure 1b
_SAYS = {
    ClaimVerdict.HOLDS: "**holds**",
    ClaimVerdict.DOES_NOT_HOLD: "**does not hold**",
    ClaimVerdict.UNDECIDED: "**undecided**",
}
Value = Callable[[FinishedRun], float]


def write_page(runs: Path, out: Path) -> str:
    """Writes the page and its figures, and returns what it says of the claims.

    Args:
        runs: folder of the workdirs.
        out: the page; the figures stand beside it, with its name before theirs.
    """
    comparison = read_comparison(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [_head(comparison)]
    for world in comparison.plan["worlds"]:
        if comparison.arms(world):
            parts.append(_world_section(comparison, world, out))
    parts += [_dial_section(comparison), _measures_section()]
    lines = "\n\n".join(parts).splitlines()
    out.write_text("".join(f"{line}\n" for line in chain.from_iterable(map(_wrap, lines))), "utf-8")
    verdicts = [
        f"{world}:\n{_claims(comparison, world)}" for world in comparison.plan["worlds"] if comparison.arms(world)
    ]
    return "\n".join([*verdicts, f"page: {out}"])


def _wrap(line: str) -> list[str]:
    """Wraps a line of prose or of a list."""
    if not line or line.startswith(("|", "#", "![")):
        return [line]
    indent = "  " if line.startswith("- ") else ""
    return textwrap.wrap(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _head(comparison: FinishedRuns) -> str:
    sizes = comparison.plan["sizes"]
    lines = [
        "# The paper in miniature",
        "Made by `make paper` (`python -m benchmarks.paper`), as measured; the same command with `--page` makes it"
        " again from the workdirs alone. [Baselines](baselines.md#the-comparison) describes arms, measures and"
        " verdicts.",
        f"Each arm has {sizes['steps']} updates of {comparison.plan['completions_per_update']} completions or gold"
        f" answers. Test rows of each file: {sizes['rows_in'] or 'all'} in domain, {sizes['rows_out'] or 'all'} out of"
        " domain. A seed moves training rows, draws and test rows; the base is the same.",
    ]
    for world in comparison.plan["worlds"]:
        arms = comparison.arms(world)
        if not arms:
            lines.append(f"**{world}: no run is finished.**")
            continue
        fewest = min(len(comparison.seeds(world, arm)) for arm in arms)
        most = max(len(comparison.seeds(world, arm)) for arm in arms)
        seeds = plural(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        missing = comparison.missing(world)
        rest = f" Missing: {', '.join(missing)}." if missing else " No planned run is missing."
        caution = " With one seed, intervals are over rows and say nothing of other seeds." if most == 1 else ""
        lines.append(f"**{world}: {plural(len(arms), 'arm')}, {seeds}.**{caution}{rest}")
    return "\n\n".join(lines)


def _world_section(comparison: FinishedRuns, world: str, out: Path) -> str:
    arms = comparison.arms(world)
    greedy, sampled = (lambda run: run.greedy), (lambda run: run.sampled)
    parts = [
        f"## World: {world}",
        "### Claims",
        "A verdict takes an interval on one side of 0, or of the margin, and a p-value below 0.05 among all claims of"
        " the world (Holm).",
        _claims(comparison, world),
        "### Budgets",
        _budgets(comparison, world, arms),
    ]
    parts.append("### Accuracy of greedy answers to open rows, in percent")
    for title, names in _TABLES.items():
        if shown := [name for name in names if name in arms]:
            parts += [f"**{title}**", _score_table(comparison, world, shown, _TASK_COLUMNS, greedy, "accuracy")]
    columns = (IN, OUT)
    axes = sorted(
        {
            column
            for arm in arms
            for run in comparison.of(world, arm)
            for column in run.greedy
            if column.startswith("out-")
        }
    )
    parts += [
        "### Greedy and sampled, accuracy and layout, open rows of all tasks, in percent",
        _four_measures(comparison, world, arms, columns),
        "### Each axis out of domain: greedy accuracy, in percent",
        _score_table(comparison, world, arms, axes, greedy, "accuracy"),
        "### Yes/no rows and choices in domain: greedy accuracy, in percent",
        _score_table(comparison, world, arms, ("judge in", "choice in"), greedy, "accuracy"),
        "### Sampled answers, accuracy in percent",
        _score_table(comparison, world, arms, _TASK_COLUMNS, sampled, "accuracy"),
        "### Figures",
        *_figures(comparison, world, arms, out),
    ]
    if table := _gains(comparison, world, arms):
        parts += ["### Gain over the base: greedy accuracy", table]
    if table := _oscillations(comparison, world, arms):
        parts += ["### Oscillation of the accuracy of each step's completions", table]
    return "\n\n".join(parts)


def _claims(comparison: FinishedRuns, world: str) -> str:
    """Lists the verdicts on the claims whose arms are planned on a world, and on the control."""
    planned = comparison.plan["arms"][world]
    claims = [claim for claim in CLAIMS if claim.first in planned and claim.second in planned]
    lines = []
    for judged in judge_claims(comparison, world, claims):
        seeds = comparison.seeds(world, judged.claim.first, judged.claim.second)
        lines.append(f"- {_claim_sentence(judged, len(seeds))}")
    if CONTROL.second in planned:
        control = judge_claims(comparison, world, (CONTROL,))[0]
        sampled = estimate_effect(comparison, world, CONTROL, sampled=True)
        lines.append(f"- {_control_sentence(control, sampled)}")
    return "\n".join(lines) or "No claim has both of its arms in the plan."


def _claim_sentence(one: JudgedClaim, seeds: int) -> str:
    first, second = (ARM_BY_NAME[name].title for name in (one.claim.first, one.claim.second))
    text = one.claim.text[0].upper() + one.claim.text[1:]
    if one.effect is None:
        return f"{text}: {_SAYS[one.verdict]}, no seed has both {second} and {first}."
    is_share = one.claim.column == OSCILLATION
    count = f"{one.effect.rows} rows of one seed" if seeds == 1 and not is_share else plural(seeds, "seed")
    effect = _effect(one.effect.difference, one.effect.interval, is_share)
    return f"{text}: {_SAYS[one.verdict]}. {second} less {first}: {effect}, p (Holm) {_p(one.p_holm)}, {count}."


def _control_sentence(one: JudgedClaim, sampled) -> str:
    if one.effect is None or sampled is None:
        return "Control, shuffled rewards: not run."
    rises = [
        name
        for name, effect in (("greedy", one.effect), ("sampled", sampled))
        if judge_claim(effect) is ClaimVerdict.HOLDS
    ]
    says = f"**rises** ({' and '.join(rises)})" if rises else "**does not rise**"
    return (
        f"Control, shuffled rewards, accuracy of open rows in domain: {says}. Less the base: greedy"
        f" {_effect(one.effect.difference, one.effect.interval, False)}, sampled"
        f" {_effect(sampled.difference, sampled.interval, False)}."
    )


def _effect(difference: float, interval: Interval | None, is_share: bool) -> str:
    factor, digits, unit = (1, 3, "") if is_share else (100, 1, " points")
    if interval is None:
        return f"{factor * difference:+.{digits}f}{unit}, no interval"
    low, high = (factor * bound for bound in interval)
    return f"{factor * difference:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _budgets(comparison: FinishedRuns, world: str, arms: Sequence[str]) -> str:
    rows = []
    for arm in arms:
        budgets = [run.budget for run in comparison.of(world, arm)]
        means = [fmean(values) for values in zip(*budgets, strict=True)]
        seconds = fmean(run.record["seconds"] for run in comparison.of(world, arm))
        rows.append(
            [
                *(ARM_BY_NAME[arm].title, ARM_BY_NAME[arm].trained_on, str(len(budgets))),
                *(f"{value:,.0f}" for value in means[:4]),
                *(f"{means[4] / 60:.1f}", f"{seconds / 60:.1f}"),
            ]
        )
    header = ["arm", "trained on", "seeds", "updates", "completions", "gold or kept answers", "answers judged"]
    return _table([*header, "minutes of steps", "minutes of the run"], rows)


def _score_table(
    comparison: FinishedRuns,
    world: str,
    arms: Sequence[str],
    columns: Sequence[str],
    answers: Callable[[FinishedRun], Mapping[str, ColumnScores]],
    field: str,
) -> str:
    rows = []
    for arm in arms:
        runs = comparison.of(world, arm)
        cells = [
            _score_cell([answers(run)[column] for run in runs if column in answers(run)], field) for column in columns
        ]
        rows.append([ARM_BY_NAME[arm].title, *cells])
    return _table(["arm", *(column.removeprefix("out-") for column in columns)], rows)


def _four_measures(comparison: FinishedRuns, world: str, arms: Sequence[str], columns: Sequence[str]) -> str:
    kinds = {
        f"{decoding} {field}, {column.removeprefix('open ')}": (decoding, field, column)
        for decoding in ("greedy", "sampled")
        for field in ("accuracy", "layout")
        for column in columns
    }
    rows = [
        [
            ARM_BY_NAME[arm].title,
            *(
                _score_cell([getattr(run, decoding)[column] for run in comparison.of(world, arm)], field)
                for decoding, field, column in kinds.values()
            ),
        ]
        for arm in arms
    ]
    return _table(["arm", *kinds], rows)


def _gains(comparison: FinishedRuns, world: str, arms: Sequence[str]) -> str:
    bases = comparison.of(world, "base") if "base" in arms else []
    columns = [name for name in ("judge in", "choice in", IN, OUT) if all(name in run.greedy for run in bases)]
    rows = []
    for arm in arms:
        if arm != "base" and comparison.seeds(world, "base", arm):
            effects = [estimate_effect(comparison, world, PaperClaim("", "base", arm, name)) for name in columns]
            cells = [_effect(one.difference, one.interval, False) for one in effects if one]
            rows.append([ARM_BY_NAME[arm].title, *cells])
    return _table(["arm", *columns], rows) if rows else ""


def _score_cell(scores: Sequence[ColumnScores], field: str) -> str:
    """Formats a mean over seeds and half its interval; with one seed that over its rows."""
    bar = _score_bar(scores, field)
    if bar is None:
        return ""
    return f"{100 * bar.value:.1f}" + (f" ± {100 * bar.half:.1f}" if bar.half is not None else "")


def _score_bar(scores: Sequence[ColumnScores], field: str) -> Bar | None:
    if not scores:
        return None
    values = [getattr(one, field) for one in scores]
    if len(values) == 1:
        estimate = estimate_mean(values[0], scores[0].images)
        return Bar(estimate.mean, estimate.interval and (estimate.interval.high - estimate.interval.low) / 2)
    return Bar(*mean_and_half([float(value.mean()) for value in values]))


def _figures(comparison: FinishedRuns, world: str, arms: Sequence[str], out: Path) -> list[str]:
    progress = {column: _progress_curves(comparison, world, arms, column) for column in (IN, OUT)}
    captions = {
        "1a": f"Figure 1a, {world}: greedy accuracy of open rows in and out of domain",
        "1b": f"Figure 1b, {world}: accuracy of the completions of each step, moving means ({_SMOOTHING})",
        "5-in": f"Figure 5, {world}, in domain: greedy accuracy of open rows against steps",
        "5-out": f"Figure 5, {world}, out of domain: greedy accuracy of open rows against steps",
    }
    charts = {
        "1a": bar_chart(captions["1a"], _bars(comparison, world, arms)),
        "1b": line_chart(captions["1b"], _training_curves(comparison, world, arms), "step"),
        "5-in": line_chart(captions["5-in"], progress[IN], "step"),
        "5-out": line_chart(captions["5-out"], progress[OUT], "step"),
    }
    images = []
    for name, svg in charts.items():
        path = out.with_name(f"{out.stem}-{world}-{name}.svg")
        path.write_text(svg, "utf-8")
        images.append(f"![{captions[name]}]({path.name})")
    return images


def _bars(comparison: FinishedRuns, world: str, arms: Sequence[str]) -> dict[str, dict[str, Bar]]:
    groups = {}
    for arm in arms:
        runs = comparison.of(world, arm)
        bars = {
            name: _score_bar([run.greedy[column] for run in runs], "accuracy")
            for name, column in (("in", IN), ("out", OUT))
        }
        groups[arm] = {f"{name} of domain" if name == "out" else "in domain": bar for name, bar in bars.items() if bar}
    return groups


def _training_curves(comparison: FinishedRuns, world: str, arms: Sequence[str]) -> dict[str, Curve]:
    curves = {}
    for arm in arms:
        series = [values for run in comparison.of(world, arm) if (values := run.accuracies())]
        if series:
            steps = min(map(len, series))
            means = _smooth(np.mean([values[:steps] for values in series], axis=0))
            curves[ARM_BY_NAME[arm].title] = Curve(list(enumerate(means, 1)), [None] * steps)
    return curves


def _smooth(values: Iterable[float]) -> list[float]:
    """Returns the moving means, bias-corrected."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(mean / weight)
    return means


def _progress_curves(comparison: FinishedRuns, world: str, arms: Sequence[str], column: str) -> dict[str, Curve]:
    curves = {}
    base = comparison.of(world, "base") if "base" in arms else []
    for arm in arms:
        runs = comparison.of(world, arm)
        by_step: dict[int, list[float]] = {}
        for run in [*runs, *(base if arm != "base" else [])]:
            for step, scores in run.progress.items():
                by_step.setdefault(step, []).append(float(scores[column].accuracy.mean()))
        if len(by_step) > 1:
            bars = {step: mean_and_half(values) for step, values in sorted(by_step.items())}
            points = [(float(step), mean) for step, (mean, _) in bars.items()]
            curves[ARM_BY_NAME[arm].title] = Curve(points, [half for _, half in bars.values()])
    return curves


def _oscillations(comparison: FinishedRuns, world: str, arms: Sequence[str]) -> str:
    stage_steps = comparison.plan["stage_steps"]
    measures: dict[str, Value] = {
        "share, all steps": lambda run: oscillation(run.accuracies(), stage_steps),
        "share, last stage's steps": lambda run: last_window_oscillation(run, stage_steps),
        "change from step to step (points, root mean square)": lambda run: (
            100 * float(np.sqrt(np.square(np.diff(run.accuracies())).mean()))
        ),
    }
    rows = []
    for arm in arms:
        runs = [run for run in comparison.of(world, arm) if len(run.accuracies()) > 1]
        if runs:
            rows.append([ARM_BY_NAME[arm].title, *(_plain_cell(list(map(value, runs))) for value in measures.values())])
    return _table(["arm", *measures], rows) if rows else ""


def _plain_cell(values: Sequence[float]) -> str:
    mean, half = mean_and_half(values)
    return f"{mean:.3f}" + (f" ± {half:.3f}" if half is not None else "")


def _dial_section(comparison: FinishedRuns) -> str:
    """Says at which pass rate of the base the curriculum begins to pay."""
    rates = {
        world: fmean(float(run.sampled[IN].accuracy.mean()) for run in comparison.of(world, "base"))
        for world in comparison.plan["worlds"]
        if comparison.seeds(world, "base", DIAL.first, DIAL.second)
    }
    worlds = sorted(rates, key=rates.__getitem__, reverse=True)
    rows, pays = [], []
    for world, judged in zip(worlds, judge_on_worlds(comparison, worlds, DIAL), strict=True):
        assert judged.effect  # all three arms have finished runs
        if judged.verdict is ClaimVerdict.HOLDS:
            pays.append(rates[world])
        order = estimate_effect(comparison, world, DIAL_ORDER)
        rows.append(
            [
                *(world, f"{100 * rates[world]:.1f}"),
                *(_effect(judged.effect.difference, judged.effect.interval, False), judged.verdict.value),
                _effect(order.difference, order.interval, False) if order else "",
            ]
        )
    parts = ["## Across the dial: when does a curriculum pay?"]
    if not rows:
        return "\n\n".join([*parts, "No world has both Curr-RL and RL yet."])
    header = [
        "world",
        "base's pass rate, open rows in domain",
        "Curr-RL less RL, out of domain",
        "the curriculum beats RL",
        "Curr-RL less mixed",
    ]
    parts.append(_table(header, rows))
    if pays:
        parts.append(
            f"The curriculum pays at a pass rate of {100 * max(pays):.1f}% and at none above it that was measured."
        )
    else:
        parts.append("At none of the pass rates that were measured is the curriculum above RL on open rows alone.")
    if len(rows) == 1:
        parts.append("One world is one point: where it begins to pay is not known.")
    return "\n\n".join(parts)


def _measures_section() -> str:
    return (
        "## How to read this\n\nMeans over seeds ± half a 95% interval (Student's t over seeds). Accuracy: right as a"
        " careful person reads the text. Layout: thoughts, then one answer, nothing else. Differences are paired by"
        " seed. Oscillation: the share of the variance of a series that is change from step to step, 1 for noise,"
        " nearly 0 for a smooth curve. [More](baselines.md#the-comparison)."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
