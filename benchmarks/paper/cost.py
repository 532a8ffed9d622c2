"""What a comparison costs, before it is run."""

from __future__ import annotations

from statistics import fmean

from benchmarks.paper.arms import ARM_BY_NAME
from benchmarks.paper.measures import read_comparison
from benchmarks.paper.plan import PLAN, Plan
from currreft_jax.config import Kind, SuiteDomain
from currreft_jax.config.wording import plural
from currreft_jax.data.world_rows import SIZES

# CPU-seconds on one core of a shared machine, of the variant :tiny: a step of GRPO of 16 prompts x 8 completions, a
# supervised step of 128 answers, an answer, and what a run spends on starting and compiling.
_TINY = {"grpo": 1.0, "sft": 1.0, "answer": 0.01, "start": 60.0}
_ROWS_OF_WORLD = 3 * SIZES.train  # open training rows, one of each task


def format_cost(plan: Plan, jobs: int, step_seconds: float | None) -> str:
    """Formats runs, updates, completions and answers of a plan, and its hours where a step's seconds are known."""
    completions = plan.curriculum.data.batch_size * plan.curriculum.sampling.group_size
    lines = [
        f"{plural(len(plan.worlds), 'world')} x {plural(len(plan.seeds), 'seed')}:"
        f" {plural(sum(1 for _ in plan), 'run')} in {plan.runs}, {jobs} at a time",
        f"each arm: {plural(plan.sizes.steps, 'update')} of {completions} completions or gold answers",
    ]
    seconds, unknown = 0.0, False
    measured = _measured_seconds(plan)
    is_tiny = plan.curriculum.name.endswith("-tiny")
    for arm in ARM_BY_NAME.values():
        runs = [run for run in plan if run.arm == arm]
        if not runs:
            if not any(arm in arms for arms in plan.arms.values()):
                continue
            lines.append(f"  {arm.name:<14}left out: the rows have no {arm.needs} answers")
            continue
        if arm.name in measured:
            own, source = measured[arm.name], "measured in this folder"
        elif step_seconds is not None and not is_tiny:
            own, source = plan.sizes.steps * step_seconds if arm.build else 0.0, "training alone, by --step-seconds"
        elif is_tiny:
            method = "sft" if arm.name.startswith("sft") else "grpo"
            train = plan.sizes.steps * _TINY[method] if arm.build else 0.0
            own, source = train + _TINY["start"] + _answers(plan, arm.name) * _TINY["answer"], "estimated"
        else:
            own, source, unknown = 0.0, "unknown", True
        seconds += own * len(runs)
        lines.append(f"  {arm.name:<14}{plural(len(runs), 'run')}, {own / 60:.1f} min each ({source})")
    for rows in {run.rows.name: run.rows for run in plan if run.arm is None}.values():
        count = plan.sizes.filter_rows * len(rows.train[Kind.OPEN]) or (_ROWS_OF_WORLD if rows.world else 0)
        own = count * plan.sizes.filter_samples * _TINY["answer"] if is_tiny else 0.0
        seconds += own
        told = f"{own / 60:.1f} min (estimated)" if own else "unknown"
        lines.append(f"  pass rates    of {count or 'all'} rows, {plan.sizes.filter_samples} answers each, {told}")
    lines.append(f"in all: {seconds / 3600 / jobs:.1f} hours with {jobs} at a time")
    if unknown:
        lines.append(
            "seconds of a step are unknown: `python -m currreft_jax.plan --config=… --topology=a800:1x8` tells them,"
            " and --step-seconds=S multiplies"
        )
    return "\n".join(lines)


def _answers(plan: Plan, arm: str) -> int:
    """Counts the answers of a run's evaluations: greedy, sampled and, to a third of the rows, its checkpoints'."""
    sizes, suites = plan.sizes, plan.worlds[0].suites
    rows = sum(sizes.rows_in if suite.domain is SuiteDomain.IN else sizes.rows_out for suite in suites)
    return rows * 2 + (rows // 3) * (6 if ARM_BY_NAME[arm].build else 1)


def _measured_seconds(plan: Plan) -> dict[str, float]:
    """Returns the mean seconds of the finished runs of each arm in the plan's folder."""
    if not (plan.runs / PLAN).exists():
        return {}
    try:
        comparison = read_comparison(plan.runs)
    except ValueError:  # none is finished yet
        return {}
    seconds: dict[str, list[float]] = {}
    for (_, arm, _), run in comparison.runs.items():
        seconds.setdefault(arm, []).append(run.record["seconds"])
    return {arm: fmean(values) for arm, values in seconds.items()}
