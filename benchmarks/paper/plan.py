"""The plan: which runs there are, what each costs, and how their answers are measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.paper.arms import ARM_BY_NAME, PASS_RATES, Arm, Ingredients, curriculum_steps, stage_steps
from benchmarks.paper.rows import PaperRows
from currreft_jax.config import (
    Config,
    EvaluatedModel,
    Evaluation,
    ImageCondition,
    Kind,
    Suite,
    SuiteDomain,
    evaluation_batch_size,
)
from currreft_jax.runtime.workdir import lasting_settings

GREEDY, SAMPLED, PROGRESS = "greedy", "sampled", "progress"  # folders of answers in a run's workdir
PLAN, RUN = "plan.json", "run.json"
DIAL_ARMS = ("base", "rl", "mixed", "curr_rl")  # of the worlds after the first
_SIZES = ("sizes", "stage_steps", "completions_per_update")  # no later command may change them
_PLACES = (".file", ".image_root", ".world")  # ends of names of settings: files may stand elsewhere later
_MODEL = ".path"  # the same of the paths of models, whose last part is compared
_PROGRESS_SHARE = 3  # of the rows of a suite, figure 5 answers one in so many


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amounts of a comparison; run and page must agree on them.

    Attributes:
        steps: updates of every arm.
        rows_in: test rows of each file in domain; 0 for all.
        rows_out: test rows of each file out of domain; 0 for all.
        filter_rows: open training rows of each file whose pass rates are measured; 0 for all.
        filter_samples: answers to each of them.
    """

    steps: int
    rows_in: int
    rows_out: int
    filter_rows: int
    filter_samples: int


@dataclass(frozen=True, slots=True)
class PaperRun:
    """A run: an arm on a world with a seed, or the pass rates of a world's base.

    Attributes:
        rows: rows of the world.
        arm: the arm; None for pass rates.
        seed: moves training rows, draws and test rows.
    """

    rows: PaperRows
    arm: Arm | None
    seed: int

    @property
    def name(self) -> str:
        """Path of its workdir in the folder of the runs."""
        return f"{self.rows.name}/{f'{self.arm.name}-{self.seed}' if self.arm else PASS_RATES}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a comparison.

    Attributes:
        runs: folder of the workdirs.
        curriculum: settings of Curr-ReFT.
        sft: settings of supervised fine-tuning.
        worlds: the rows of each world.
        arms: the arms of each world, by its name.
        seeds: the seeds.
        sizes: amounts.
    """

    runs: Path
    curriculum: Config
    sft: Config
    worlds: Sequence[PaperRows]
    arms: Mapping[str, Sequence[Arm]]
    seeds: Sequence[int]
    sizes: Sizes

    def __iter__(self) -> Iterator[PaperRun]:
        """Yields the runs: all arms of the first seed on the first world come first, so that there is soon a page."""
        for rows in self.worlds:
            for seed in self.seeds:
                for arm in self.arms[rows.name]:
                    if arm.needs in ("", PASS_RATES) or arm.needs in rows.golds:
                        if arm.needs == PASS_RATES and seed == self.seeds[0]:
                            yield PaperRun(rows, None, 0)
                        yield PaperRun(rows, arm, seed)

    def ingredients(self, run: PaperRun) -> Ingredients:
        """Returns what a run's arm is made of."""
        pass_rates = (self.runs / run.rows.name / PASS_RATES / "pass_rates.jsonl").absolute()
        return Ingredients(self.curriculum, self.sft, run.rows, self.sizes.steps, run.seed, pass_rates)

    def base(self, run: PaperRun) -> str:
        """Returns the path of the run's base model."""
        return run.rows.model or self.curriculum.model.path

    def evaluation(self, run: PaperRun, models: list[EvaluatedModel], what: str) -> Evaluation:
        """Returns the settings by which models of a run answer test rows; the seed chooses rows and draws."""
        sizes, is_progress = self.sizes, what == PROGRESS
        suites = [
            _sampled_suite(suite, sizes.rows_in if suite.domain is SuiteDomain.IN else sizes.rows_out, part=is_progress)
            for suite in run.rows.suites
            if not is_progress or suite.name not in ("in-judge", "in-choice")
        ]
        return self._evaluation(run, models, suites, temperature=float(what == SAMPLED))

    def pass_rates(self, run: PaperRun) -> Evaluation:
        """Returns the settings by which the base answers the open training rows, several times each."""
        suites = [
            _sampled_suite(Suite(f"train-{index}", [source]), self.sizes.filter_rows)
            for index, source in enumerate(run.rows.train[Kind.OPEN])
        ]
        evaluation = self._evaluation(run, [EvaluatedModel(self.base(run), "base")], suites, temperature=1.0)
        return replace(evaluation, sampling=replace(evaluation.sampling, group_size=self.sizes.filter_samples))

    def _evaluation(
        self, run: PaperRun, models: list[EvaluatedModel], suites: list[Suite], temperature: float
    ) -> Evaluation:
        config = self.curriculum
        return Evaluation(
            name="paper",
            seed=run.seed,
            models=models,
            suites=suites,
            images=(ImageCondition.ORIGINAL,),
            template=config.data.template,
            world=run.rows.world,
            dtype=config.model.dtype,
            min_pixels=config.model.min_pixels,
            max_pixels=config.model.max_pixels,
            mesh=config.mesh,
            batch_size=evaluation_batch_size(config) // 2 or 1,
            sampling=replace(
                config.sampling,
                group_size=1,
                temperature=temperature,
                prompt_lengths=config.data.prompt_lengths,
            ),
            aliases=config.rewards.aliases,
            maths=config.rewards.maths,
            threads=config.data.threads,
        )

    def record(self) -> dict[str, Any]:
        """Returns what `plan.json` holds: what the page needs to know of runs that are not there yet."""
        sampling, configs = self.curriculum.sampling, {"curriculum": self.curriculum, "sft": self.sft}
        return {
            "sizes": asdict(self.sizes),
            "stage_steps": stage_steps(self.curriculum, self.sizes.steps),
            "worlds": [rows.name for rows in self.worlds],
            "arms": {world: [arm.name for arm in arms] for world, arms in self.arms.items()},
            "seeds": list(self.seeds),
            "completions_per_update": self.curriculum.data.batch_size * sampling.group_size,
            "settings": {
                f"{config_name}.{name}": Path(value).name if name.endswith(_MODEL) else value
                for config_name, config in configs.items()
                for name, value in lasting_settings(config).items()
                if not name.endswith(_PLACES)
            },
        }


def make_plan(
    runs: Path,
    curriculum: Config,
    sft: Config,
    worlds: Sequence[PaperRows],
    arms: Sequence[str],
    seeds: int,
    sizes: Sizes,
) -> Plan:
    """Returns a plan.

    Args:
        runs: folder of the workdirs.
        curriculum: settings of Curr-ReFT.
        sft: settings of supervised fine-tuning.
        worlds: the rows of each world.
        arms: names of arms; where there are none, all on the first world, and those that the dial needs on the others.
        seeds: number of seeds.
        sizes: amounts; 0 steps for the curriculum's.

    Raises:
        ValueError: an arm is unknown, or a number is too small.
    """
    if unknown := [name for name in arms if name not in ARM_BY_NAME]:
        raise ValueError(f"--arms={unknown[0]}: it takes {', '.join(ARM_BY_NAME)}")
    if seeds < 1:
        raise ValueError(f"--seeds={seeds}: at least 1")
    sizes = replace(sizes, steps=sizes.steps or curriculum_steps(curriculum))
    stage_steps(curriculum, sizes.steps)
    by_world = {
        rows.name: arms or (list(ARM_BY_NAME) if index == 0 else DIAL_ARMS) for index, rows in enumerate(worlds)
    }
    chosen = {name: [ARM_BY_NAME[arm] for arm in ARM_BY_NAME if arm in names] for name, names in by_world.items()}
    return Plan(runs, curriculum, sft, worlds, chosen, range(seeds), sizes)


def keep_plan(plan: Plan) -> None:
    """Writes the plan into the folder of the runs; more seeds, arms and worlds may be added to one that is there.

    Raises:
        ValueError: the runs there have other sizes or settings.
    """
    path, record = plan.runs / PLAN, json.loads(json.dumps(plan.record()))
    before = json.loads(path.read_text("utf-8")) if path.exists() else record
    before.setdefault("settings", record["settings"])  # a plan of an earlier version has none
    was, now = ({name: one[name] for name in _SIZES} | one["settings"] for one in (before, record))
    if changed := [name for name in was | now if was.get(name) != now.get(name)]:
        name = changed[0]
        raise ValueError(f"{path}: {name} was {was.get(name)}, and is {now.get(name)}: take another --runs")
    for name in ("worlds", "seeds"):
        record[name] = list(dict.fromkeys([*before[name], *record[name]]))
    for world, arms in before["arms"].items():
        together = {*arms, *record["arms"].get(world, ())}
        record["arms"][world] = [arm for arm in ARM_BY_NAME if arm in together]
    plan.runs.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    partial.replace(path)


def _sampled_suite(suite: Suite, count: int, *, part: bool = False) -> Suite:
    """Returns a suite of so many random rows of each file, all where 0; of a part of these for figure 5."""
    if count:
        sample = f"random:{max(1, count // _PROGRESS_SHARE) if part else count}"
    else:
        sample = f"random:{100 // _PROGRESS_SHARE}%" if part else "all"
    return replace(suite, sources=[replace(source, sample=sample) for source in suite.sources])
