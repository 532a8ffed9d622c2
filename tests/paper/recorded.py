"""Folders of finished runs, written without training: answers, metrics and records as a comparison leaves them."""

import dataclasses
import json
from pathlib import Path

from benchmarks.paper.arms import ARM_BY_NAME, Ingredients
from benchmarks.paper.plan import GREEDY, PROGRESS, SAMPLED, Plan, Sizes, keep_plan, make_plan
from benchmarks.paper.rows import KINDS, PaperRows
from configs import curriculum, sft
from currreft_jax.config import Config, Kind, Method, QuotaSource, Source, Suite, SuiteDomain, Task
from currreft_jax.evaluation.answers import Answer, answer_line
from currreft_jax.runtime.metrics import METRICS
from currreft_jax.runtime.workdir import CHECKPOINTS, write_config
from currreft_jax.world.settings import WorldSettings

LAID_OUT, BARE_TEXT = "<think> a </think> <answer> 1 </answer>", "<answer> 1 </answer>"
ROWS = 40
SIZES = Sizes(steps=24, rows_in=ROWS, rows_out=ROWS, filter_rows=0, filter_samples=4)


def tiny_curriculum() -> Config:
    return curriculum.get_config("tiny")


def rows_of(name: str = "middle") -> PaperRows:
    """Rows whose files do not exist, for plans and settings."""
    train = {kind: [Source(f"{kind.value}-{task}.jsonl") for task in ("a", "b")] for kind in KINDS}
    suites = [
        Suite(f"in-{kind.value}", [Source(f"in-{kind.value}.jsonl")], domain=SuiteDomain.IN) for kind in KINDS
    ] + [Suite(f"out-{axis}", [Source(f"out-{axis}.jsonl")], domain=SuiteDomain.OUT) for axis in ("dark", "noise")]
    golds = {"bare": [Source("bare.jsonl")], "reasoned": [Source("reasoned.jsonl")]}
    return PaperRows(
        name, "base", "", WorldSettings(), train, golds, suites, [QuotaSource("open", Source("open-a.jsonl"), 4)]
    )


def plan_of(runs: Path, *, arms=(), seeds: int = 1, worlds=("middle",), sizes: Sizes = SIZES) -> Plan:
    rows = [rows_of(name) for name in worlds]
    return make_plan(runs, tiny_curriculum(), sft.get_config("tiny"), rows, arms, seeds, sizes)


def ingredients(steps: int = 24, seed: int = 3) -> Ingredients:
    return Ingredients(tiny_curriculum(), sft.get_config("tiny"), rows_of(), steps, seed, Path("rates.jsonl"))


def write_runs(runs: Path, accuracies: dict[str, list[float]], *, worlds=("middle",), text: str = LAID_OUT) -> Plan:
    """Writes finished runs.

    Args:
        runs: folder.
        accuracies: arm -> share of right answers of each seed, in every suite.
        worlds: names of worlds, with the same runs.
        text: of all completions.
    """
    seeds = max(map(len, accuracies.values()))
    plan = plan_of(runs, arms=list(accuracies), seeds=seeds, worlds=worlds)
    keep_plan(plan)
    for world in worlds:
        for arm, shares in accuracies.items():
            for seed, share in enumerate(shares):
                _write_run(runs / world / f"{arm}-{seed}", plan, world, arm, seed, share, text)
    return plan


def _write_run(workdir: Path, plan: Plan, world: str, arm: str, seed: int, share: float, text: str) -> None:
    answers = workdir / "answers"
    for folder in (
        answers / GREEDY / arm,
        answers / SAMPLED / arm,
        answers / PROGRESS / ("24" if ARM_BY_NAME[arm].build else "0"),
    ):
        for suite in plan.worlds[0].suites:
            write_suite(folder, suite, seed, share, text)
    if ARM_BY_NAME[arm].build:
        config = ARM_BY_NAME[arm].build(dataclasses.replace(ingredients(), seed=seed))
        for stage in config.stages:
            folder = workdir / stage.name if len(config.stages) > 1 else workdir
            (folder / CHECKPOINTS).mkdir(parents=True)
            write_config(config, folder)
            has_rewards = (stage.method or config.method) is Method.GRPO
            lines = [
                {"step": step, "stage": stage.name, "step_time": 0.5}
                | ({"rewards/accuracy/mean": 0.4 + 0.1 * (step % 2)} if has_rewards else {})
                for step in range(1, stage.steps + 1)
            ]
            (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"world": world, "arm": arm, "seed": seed, "base": "base", "seconds": 60.0, "finished": True}
    (workdir / "run.json").write_text(json.dumps(record))


def write_suite(folder: Path, suite: Suite, seed: int, share: float, text: str) -> None:
    """Writes the answers to a suite, of which the first `share` are right."""
    kind = next((kind for kind in KINDS if suite.name == f"in-{kind.value}"), Kind.OPEN)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = (Task.DETECTION, Task.CLASSIFY, Task.MATH, Task.MATH)
    lines = [
        answer_line(_answer(f"{suite.name}-{seed}-{row}", tasks[row % 4], kind, int(row < round(share * ROWS)), text))
        for row in range(ROWS)
    ]
    (folder / f"{suite.name}.jsonl").write_text("".join(lines))
    manifest = {
        "rows": {"suite": suite.name, "count": ROWS, "domain": suite.domain.value, "files": []},
        "images": "original",
        "model": {"path": "model"},
        "leaks": 0,
        **{name: {} for name in ("pixels", "dtype", "prompts", "decoding", "scorer")},
    }
    (folder / f"{suite.name}.manifest.json").write_text(json.dumps(manifest))


def _answer(row: str, task: Task, kind: Kind, right: int, text: str) -> Answer:
    score = (float(right),)
    return Answer(row, "", task, kind, (text,), (right,), (right,), score, score, (None,), ("answer",), (True,))
