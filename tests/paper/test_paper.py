"""The comparison of methods: equal budgets, what is measured, verdicts, and a page that the workdirs give again."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.paper import arms, execute
from benchmarks.paper import rows as rows_module
from benchmarks.paper.__main__ import _parser, main
from benchmarks.paper.arms import ARM_BY_NAME, ARMS, split_steps, stage_of_kinds
from benchmarks.paper.claims import CLAIMS, CONTROL, OSCILLATION, PaperClaim, judge_claims
from benchmarks.paper.measures import (
    ColumnScores,
    FinishedRuns,
    has_layout,
    mean_and_half,
    oscillation,
    read_comparison,
    read_scores,
    rows_difference,
)
from benchmarks.paper.page import write_page
from benchmarks.paper.plan import GREEDY, PROGRESS, SAMPLED, keep_plan, make_plan
from benchmarks.paper.rows import WORLDS, ensure_rows, rows_of_user, rows_of_world, write_golds
from configs import common
from currreft_jax.config import (
    ELSEWHERE,
    EvaluatedModel,
    Kind,
    Method,
    Source,
    evaluation_batch_size,
    stage_settings,
    validate,
    validate_evaluation,
)
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.rows import row_to_json
from currreft_jax.runtime.distributed import REQUEUE
from currreft_jax.world.settings import WorldSettings, WorldSizes
from currreft_jax.world.write import write_world
from tests.paper.recorded import (
    BARE_TEXT,
    LAID_OUT,
    ROWS,
    SIZES,
    ingredients,
    plan_of,
    rows_of,
    write_runs,
    write_suite,
)
from tests.test_grpo import config_of

TRAINED = [arm for arm in ARMS if arm.build]
WHAT = (GREEDY, SAMPLED, PROGRESS)
SPREAD = [-0.05, 0.0, 0.05, 0.0]  # of seeds, in steps of rows


def seeds(share: float) -> list[float]:
    return [share + spread for spread in SPREAD]


# ------------------------------------------------------------------------------------------------------------- arms


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_every_arm_has_the_same_updates_of_as_many_completions_or_golds(arm):
    config = arm.build(ingredients())
    validate(config)
    settings = [stage_settings(config, index) for index in range(len(config.stages))]
    assert sum(stage.steps for stage in config.stages) == 24
    for stage, own in zip(config.stages, settings, strict=True):
        per_update = own.data.batch_size * (own.sampling.group_size if own.method is Method.GRPO else 1)
        assert per_update == 128 or (stage.rejection and per_update == 32)


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_an_arm_starts_from_the_base_with_its_seed_and_sees_no_test_row(arm):
    parts = ingredients(seed=5)
    for stage in parts.curriculum.stages:
        stage.out_of_domain, stage.evaluate_every = [Source("out-dark.jsonl")], 2
    config = arm.build(parts)
    assert (config.model.path, config.seed) == ("base", 5)
    for stage in config.stages:
        assert not stage.evaluated and not stage.evaluate_every
        assert stage.forgetting_margin is None and stage.promote_above == 1
        assert not any(source.file.startswith(("in-", "out-")) for source in stage.sources)
        assert stage.rejection is None or stage.rejection.seed == 5


def test_curricula_differ_in_order_alone_and_the_mixture_has_each_kind_as_often():
    built = {name: ARM_BY_NAME[name].build(ingredients()) for name in ("curr_rl", "reversed", "mixed", "rl")}
    assert [stage.kinds[0] for stage in built["curr_rl"].stages] == [Kind.JUDGE, Kind.CHOICE, Kind.OPEN]
    assert built["reversed"].stages == built["curr_rl"].stages[::-1]
    weights = {source.file: source.weight for source in built["mixed"].stages[0].sources}
    assert weights == {f"{kind}-{task}.jsonl": 4.0 for kind in ("judge", "choice", "open") for task in ("a", "b")}
    assert [stage.kinds for stage in built["rl"].stages] == [(Kind.OPEN,)]


def test_a_longer_last_stage_weighs_more_in_the_mixture():
    parts = ingredients(steps=36)
    for stage, steps in zip(parts.curriculum.stages, (6, 5, 25), strict=False):
        stage.steps = steps
    (mixed,) = ARM_BY_NAME["mixed"].build(parts).stages
    assert [source.weight for source in mixed.sources] == [3, 3, 2.5, 2.5, 12.5, 12.5]


def test_arms_of_supervised_training_differ_in_their_answers_and_in_the_filter():
    sources = {name: ARM_BY_NAME[name].build(ingredients()) for name in ("sft", "sft_reasoned", "sft_filtered")}
    files = {name: (config.stages[0].sources[0].file, config.data.pass_rates) for name, config in sources.items()}
    assert files == {
        "sft": ("bare.jsonl", ""),
        "sft_reasoned": ("reasoned.jsonl", ""),
        "sft_filtered": ("bare.jsonl", "rates.jsonl"),
    }


def test_the_control_alone_shuffles_rewards():
    assert [arm.name for arm in ARMS if arm.shuffles] == ["shuffled"]


def test_steps_are_split_in_proportion():
    assert split_steps(240, [80, 80, 80]) == [80, 80, 80]
    assert split_steps(36, [600, 500, 2500]) == [6, 5, 25]
    with pytest.raises(ValueError, match="--steps=2: at least 3 updates"):
        split_steps(2, [80, 80, 80])


def test_a_config_without_the_three_kinds_is_refused():
    config = ingredients().curriculum
    config.stages = config.stages[1:]
    with pytest.raises(ValueError, match="no stage of judge rows"):
        stage_of_kinds(config)


# ------------------------------------------------------------------------------------------------------------- plan


def test_a_seeds_arms_come_before_the_next_seed_and_pass_rates_before_their_first_use(tmp_path):
    names = [run.name for run in plan_of(tmp_path, arms=["base", "rl", "sft_filtered"], seeds=2)]
    assert names == [
        *("middle/base-0", "middle/rl-0", "middle/pass_rates", "middle/sft_filtered-0"),
        *("middle/base-1", "middle/rl-1", "middle/sft_filtered-1"),
    ]


def test_the_worlds_after_the_first_have_the_arms_of_the_dial_unless_others_are_named(tmp_path):
    def arms_of(plan, world):
        return [run.arm.name for run in plan if run.rows.name == world and run.arm]

    plan = plan_of(tmp_path, worlds=("middle", "hard"))
    assert arms_of(plan, "middle") == [arm.name for arm in ARMS]
    assert arms_of(plan, "hard") == ["base", "rl", "mixed", "curr_rl"]
    assert arms_of(plan_of(tmp_path, arms=["sft"], worlds=("middle", "hard")), "hard") == ["sft"]


def test_an_arm_is_left_out_where_the_rows_lack_its_answers(tmp_path):
    plan = plan_of(tmp_path)
    plan.worlds[0].golds.pop("reasoned")
    assert not [run for run in plan if run.arm and run.arm.name == "sft_reasoned"]


def test_the_seed_chooses_test_rows_and_draws_and_all_arms_of_a_seed_have_the_same(tmp_path):
    plan = plan_of(tmp_path, arms=["base", "rl"], seeds=2)
    runs = {run.name: run for run in plan}
    model = [EvaluatedModel("m", "m")]
    greedy = [plan.evaluation(run, model, GREEDY) for run in runs.values()]
    for evaluation in greedy:
        validate_evaluation(evaluation)
    assert [evaluation.seed for evaluation in greedy] == [0, 0, 1, 1]
    assert greedy[0] == greedy[1] and {suite.sources[0].sample for suite in greedy[0].suites} == {f"random:{ROWS}"}
    sampled = plan.evaluation(runs["middle/rl-0"], model, SAMPLED)
    assert (greedy[0].sampling.temperature, sampled.sampling.temperature) == (0.0, 1.0)
    progress = plan.evaluation(runs["middle/rl-0"], model, PROGRESS)
    assert [suite.name for suite in progress.suites] == ["in-open", "out-dark", "out-noise"]
    assert progress.suites[0].sources[0].sample == f"random:{ROWS // 3}"
    everything = replace(plan, sizes=replace(SIZES, rows_in=0, rows_out=0))
    samples = [everything.evaluation(runs["middle/rl-0"], model, what).suites[0].sources[0].sample for what in WHAT]
    assert samples == ["all", "all", "random:33%"]
    assert greedy[0].batch_size == evaluation_batch_size(plan.curriculum) // 2


def test_a_folder_takes_more_seeds_and_arms_and_no_other_sizes_or_settings(tmp_path):
    keep_plan(plan_of(tmp_path, arms=["rl"], seeds=1))
    keep_plan(plan_of(tmp_path, arms=["base"], seeds=2))
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert (kept["arms"], kept["seeds"]) == ({"middle": ["base", "rl"]}, [0, 1])
    keep_plan(plan_of(tmp_path, arms=["rl"], worlds=["hard"]))
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert (kept["arms"], kept["worlds"]) == ({"hard": ["rl"], "middle": ["base", "rl"]}, ["middle", "hard"])
    with pytest.raises(ValueError, match=r"sizes was .* take another --runs"):
        keep_plan(plan_of(tmp_path, sizes=replace(SIZES, steps=30)))
    plan = plan_of(tmp_path)
    other = replace(plan, sft=replace(plan.sft, optimizer=replace(plan.sft.optimizer, learning_rate=0.5)))
    with pytest.raises(ValueError, match=r"sft\.optimizer\.learning_rate was .*, and is 0\.5: take another --runs"):
        keep_plan(other)
    moved, another = (replace(plan.curriculum.model, path=path) for path in ("elsewhere/base", "another"))
    keep_plan(replace(plan, curriculum=replace(plan.curriculum, model=moved)))
    with pytest.raises(ValueError, match=r"curriculum\.model\.path was base, and is another: take another --runs"):
        keep_plan(replace(plan, curriculum=replace(plan.curriculum, model=another)))


def test_unknown_names_are_refused_in_one_line(tmp_path, capsys):
    for arguments, message in (
        (["--arms", "sfft"], "--arms=sfft: it takes base, sft"),
        (["--worlds", "flat"], "--worlds=flat: it takes"),
        (["--rows-in", "x"], "--rows-in and --rows-out need each other"),
        (["--seeds", "0"], "--seeds=0: at least 1"),
        (["--only", "middle/none-0"], "the plan has no such run"),
        (["--page"], "holds no comparison"),
    ):
        with pytest.raises(SystemExit, match=re.escape(message)):
            main(["--runs", str(tmp_path), *arguments])


@pytest.fixture
def elsewhere(monkeypatch):
    """Removes the variable afterwards that `--plan` sets."""
    monkeypatch.setenv(ELSEWHERE, "")
    monkeypatch.delenv(ELSEWHERE)


@pytest.mark.usefixtures("elsewhere")
def test_the_plan_is_told_without_a_run(tmp_path, capsys):
    main(["--plan", "--runs", str(tmp_path / "runs"), "--seeds", "2", "--arms", "base", "rl", "--worlds", "middle"])
    told = capsys.readouterr().out
    assert "1 world x 2 seeds: 4 runs" in told and "240 updates of 128" in told and "hours" in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("elsewhere")
def test_the_papers_own_comparison_is_planned_without_an_accelerator(tmp_path, capsys):
    for name in ("train/judge-a", "train/choice-a", "train/open-a", "test/in-a", "test/out-a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").touch()
    rows = ["--rows-in", str(tmp_path), "--rows-out", str(tmp_path), "--seeds", "1", "--jobs", "1", "--plan"]
    configs = ["--config", "configs/curriculum.py:3b", "--sft-config", "configs/sft.py:3b"]
    main([*rows, *configs, "--runs", str(tmp_path / "runs"), "--step-seconds", "2"])
    told = capsys.readouterr().out
    assert "3,600 updates of 32" in told and "rl            1 run, 120.0 min each (training alone" in told
    assert "sft_reasoned  left out: the rows have no reasoned answers" in told
    main([*rows, *configs, "--runs", str(tmp_path / "runs")])
    assert "seconds of a step are unknown" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- rows


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    sizes = WorldSizes(**dict.fromkeys(WorldSizes.__dataclass_fields__, 0) | {"train": 4})
    write_world(folder, row_to_json, sizes=sizes)
    return folder


def test_supervised_rows_are_the_open_rows_with_their_ids_and_reasoned_ones_think(small_world, tmp_path):
    for name in ("bare", "reasoned"):
        write_golds(small_world, tmp_path / name, WorldSettings(), reasoned=name == "reasoned")
    with RowFile(small_world / "train_open.jsonl") as rows:
        for index in range(len(rows)):
            row = rows[index]
            with RowFile(tmp_path / "bare") as bare, RowFile(tmp_path / "reasoned") as reasoned:
                texts = [file[index].messages[1].text for file in (bare, reasoned)]
                assert {bare[index].id, reasoned[index].id} == {row.id} and bare[index].images == row.images
            assert texts[0] == f"<answer> {row.solution} </answer>"
            assert re.fullmatch(rf"<think> : .+ </think> {re.escape(texts[0])}", texts[1])


def test_rows_of_another_difficulty_are_refused(small_world, tmp_path):
    other = WorldSettings(objects=(3, 4), composed=0.0, lines=0.0, sums=1.0)
    with pytest.raises(ValueError, match="was drawn with other settings"):
        write_golds(small_world, tmp_path / "rows", other, reasoned=True)


def test_a_world_of_another_difficulty_is_drawn_once(tmp_path, monkeypatch):
    sizes = WorldSizes(**dict.fromkeys(WorldSizes.__dataclass_fields__, 0) | {"train": 2})
    monkeypatch.setattr(rows_module, "WORLDS", {**WORLDS, "crowded": WorldSettings(objects=(4, 4))})
    monkeypatch.setattr(rows_module, "SIZES", sizes)
    monkeypatch.setattr(common, "WORLD", str(tmp_path / "world"))
    rows, said = rows_of_world("crowded", tmp_path / "runs"), []
    ensure_rows(rows, said.append)
    ensure_rows(rows, said.append)
    assert len(said) == 1 and json.loads((tmp_path / "world-crowded/world.json").read_text())["settings"][
        "objects"
    ] == [4, 4]
    assert all((tmp_path / f"runs/crowded/golds/{name}.jsonl").exists() for name in ("bare", "reasoned"))


def test_a_users_folders_are_read_as_dataset_build_writes_them(tmp_path):
    for name in ("judge-a", "choice-a", "open-a", "open-b"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / f"train/{name}.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r"has no test/\*\.jsonl"):
        rows_of_user(tmp_path, tmp_path)
    for name in ("in-a", "judge-a", "out-a"):
        (tmp_path / "test").mkdir(exist_ok=True)
        (tmp_path / f"test/{name}.jsonl").touch()
    rows = rows_of_user(tmp_path, tmp_path)
    assert [source.file for source in rows.train[Kind.OPEN]] == [f"{tmp_path}/train/open-{name}.jsonl" for name in "ab"]
    assert [suite.name for suite in rows.suites] == ["in-a", "in-judge-a", "out-a"]
    assert list(rows.golds) == ["bare"]
    (tmp_path / "train/reasoned-a.jsonl").touch()
    assert rows_of_user(tmp_path, tmp_path / "test/out-a.jsonl").golds["reasoned"]


# --------------------------------------------------------------------------------------------------------- measures


def test_oscillation_is_the_share_of_variance_that_is_change_from_step_to_step():
    assert oscillation([0, 1, 0, 1], [4]) == pytest.approx(1.5)  # 3 changes of 1, halved, over 4 deviations of 1/4
    assert oscillation(list(range(100)), [100]) == pytest.approx(99 / 2 / (100 * (100**2 - 1) / 12))
    noise = np.random.default_rng(0).normal(size=20_000)
    assert oscillation(noise, [10_000, 10_000]) == pytest.approx(1, abs=0.03)
    assert oscillation([0, 1, 9, 8], [2, 2]) == pytest.approx(1)  # a jump between windows is no change
    assert oscillation([0, 0, 0, 1], [2, 2]) == pytest.approx(1)
    assert np.isnan(oscillation([0.5, 0.5], [2]))


def test_the_columns_of_tasks_and_axes_have_open_rows_alone(tmp_path):
    shares = {"in-open": 0.5, "in-judge": 1.0, "out-dark": 0.2}  # of right answers, in each task
    for suite in rows_of().suites:
        if suite.name in shares:
            write_suite(tmp_path, suite, 0, shares[suite.name], LAID_OUT)
    means = {column: scores.accuracy.mean() for column, scores in read_scores(tmp_path).items()}
    tasks = ("open", "detection", "classify", "math")
    wanted = {f"{task} in": 0.5 for task in tasks} | dict.fromkeys(
        (*(f"{task} out" for task in tasks), "out-dark"), 0.2
    )
    assert means == {**wanted, "judge in": 1.0}


def test_layout_is_thoughts_then_one_answer_whatever_they_say():
    assert has_layout(LAID_OUT, True)
    assert not any(has_layout(text, True) for text in (BARE_TEXT, f"{LAID_OUT} more", "<answer> 1", ""))
    assert not has_layout(LAID_OUT, False)


def test_a_mean_over_seeds_has_students_interval_and_one_seed_has_none():
    assert mean_and_half([0.4]) == (pytest.approx(0.4), None)
    mean, half = mean_and_half([0.3, 0.5])
    assert mean == pytest.approx(0.4) and half == pytest.approx(12.7062 * 0.1, rel=1e-4)


def test_rows_of_two_arms_must_be_the_same():
    scores = ColumnScores(np.ones(2), np.ones(2), ("", ""), ("a", "b"))
    with pytest.raises(ValueError, match="answered other rows"):
        rows_difference(scores, scores._replace(rows=("b", "a")))


def test_a_runs_budget_is_counted_from_its_metrics(tmp_path):
    write_runs(tmp_path, {name: [0.5] for name in ("base", "sft", "curr_rl", "curr_reft")})
    comparison = read_comparison(tmp_path)
    (base,), (sft,), (curr,), (reft,) = (
        comparison.of("middle", arm) for arm in ("base", "sft", "curr_rl", "curr_reft")
    )
    assert base.budget == (0, 0, 0, 0, 0.0)
    assert sft.budget == (24, 0, 24 * 128, 0, 12.0)
    assert curr.budget == (24, 24 * 128, 0, 0, 12.0)
    assert reft.budget == (24, 22 * 128, 2 * 32, 0, 12.0)
    (reft.workdir / "reject").mkdir()
    (reft.workdir / "reject/summary.json").write_text('{"answers": {"kept": 3, "wrong": 4}}')
    assert read_comparison(tmp_path).of("middle", "curr_reft")[0].budget.judged == 7
    for path in (tmp_path / "middle/curr_rl-0").rglob("config.json"):  # two passes over four minibatches
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"grpo": config["grpo"] | {"num_updates": 2, "minibatches": 4}}))
    assert read_comparison(tmp_path).of("middle", "curr_rl")[0].budget == (24 * 8, 24 * 128, 0, 0, 12.0)


# ----------------------------------------------------------------------------------------------------------- claims


def verdicts_of(runs, claims=CLAIMS) -> dict[tuple[str, str, str], str]:
    judged = judge_claims(read_comparison(runs), "middle", claims)
    return {(one.claim.first, one.claim.second, one.claim.column): one.verdict.value for one in judged}


def test_claims_hold_fail_or_stay_open_by_their_paired_intervals(tmp_path):
    accuracies = {"base": seeds(0.3), "sft": seeds(0.4), "rl": seeds(0.6), "curr_rl": [0.6, 0.65, 0.55, 0.65]}
    write_runs(tmp_path, accuracies)
    verdicts = verdicts_of(tmp_path)
    assert verdicts["sft", "rl", "open out"] == "holds"
    assert verdicts["base", "sft", "open out"] == "does not hold"  # it rose, where the claim is that it falls
    assert verdicts["rl", "curr_rl", "open out"] == "undecided"
    assert verdicts["mixed", "curr_rl", "open out"] == "undecided"  # not run


def test_holms_correction_counts_the_claims_that_could_be_judged(tmp_path):
    weak = [0.45, 0.55, 0.6, 0.55]  # above the base by 5 to 20 points: p = 0.03 alone
    write_runs(tmp_path, {"base": [0.4, 0.4, 0.4, 0.45], "sft": [0.4, 0.4, 0.4, 0.45], "rl": weak})
    claim = PaperClaim("", "base", "rl", "open out")
    (alone,) = judge_claims(read_comparison(tmp_path), "middle", [claim])
    assert alone.verdict.value == "holds" and 0.02 < alone.p_holm < 0.05
    together = judge_claims(read_comparison(tmp_path), "middle", [claim, replace(claim, first="sft"), *CLAIMS[:1]])
    assert [one.verdict.value for one in together] == ["undecided"] * 3


def test_a_margin_moves_the_claim_and_its_p_value(tmp_path):
    write_runs(tmp_path, {"curr_rl": seeds(0.6), "curr_reft": seeds(0.6)})
    little = PaperClaim("", "curr_rl", "curr_reft", "open in", margin=0.02)
    (equal,) = judge_claims(read_comparison(tmp_path), "middle", [little])
    assert equal.effect.difference == 0 and equal.verdict.value == "holds"
    write_runs(tmp_path / "better", {"curr_rl": [0.6] * 4, "curr_reft": [0.6, 0.625, 0.6, 0.625]})
    (better,) = judge_claims(read_comparison(tmp_path / "better"), "middle", [little])
    assert better.verdict.value == "holds"
    assert better.p_holm == pytest.approx(ttest_1samp([0, 0.025, 0, 0.025], -0.02).pvalue)  # without the margin 0.18
    write_runs(tmp_path / "worse", {"curr_rl": [0.6] * 4, "curr_reft": [0.4, 0.45, 0.4, 0.45]})
    (worse,) = judge_claims(read_comparison(tmp_path / "worse"), "middle", [little])
    assert worse.verdict.value == "does not hold" and worse.p_holm < 0.01


def test_the_brick_wall_is_tamed_if_the_curriculum_oscillates_less_on_the_steps_of_its_last_stage():
    """Before those steps it is the other way round."""
    turning, steady, between = [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]  # 3/2, 1/2 and 1
    series = {
        "rl": [[*steady, *last] for last in (turning, turning, turning, between)],
        "curr_rl": [[*turning, *steady]] * 4,
    }
    (claim,) = (one for one in CLAIMS if one.column == OSCILLATION)

    def judged(first: str, second: str):
        arms = {claim.first: series[first], claim.second: series[second]}
        runs = {
            ("middle", arm, seed): SimpleNamespace(accuracies=partial(list, values))
            for arm, of_seeds in arms.items()
            for seed, values in enumerate(of_seeds)
        }
        (one,) = judge_claims(FinishedRuns({"seeds": range(4), "stage_steps": [2, 2, 4]}, runs), "middle", [claim])
        return one.effect.difference, one.verdict.value

    assert judged("rl", "curr_rl") == (pytest.approx((-1 - 1 - 1 - 0.5) / 4), "holds")
    assert judged("curr_rl", "rl")[1] == "does not hold"


def test_one_seed_is_judged_by_its_rows(tmp_path):
    write_runs(tmp_path, {"base": [0.2], "rl": [0.9]})
    (judged,) = judge_claims(read_comparison(tmp_path), "middle", [PaperClaim("", "base", "rl", "open in")])
    assert judged.verdict.value == "holds" and judged.effect.rows == ROWS
    assert f"{2 * ROWS} rows of one seed" in write_page(tmp_path, tmp_path / "page.md")  # out of domain: two axes


# ------------------------------------------------------------------------------------------------------------- page


def test_the_page_is_made_again_from_the_workdirs_and_follows_them(tmp_path, capsys):
    write_runs(tmp_path, {"base": [0.25], "rl": [0.5], "shuffled": [0.25]})
    page = tmp_path / "page.md"
    write_page(tmp_path, page)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("page*")}
    assert sorted(written) == [
        "page-middle-1a.svg",
        "page-middle-1b.svg",
        "page-middle-5-in.svg",
        "page-middle-5-out.svg",
        "page.md",
    ]
    for path in tmp_path.glob("page*"):
        path.unlink()
    main(["--page", "--runs", str(tmp_path), "--out", str(page)])
    assert {path.name: path.read_bytes() for path in tmp_path.glob("page*")} == written
    answers = tmp_path / "middle/rl-0/answers/greedy/rl/in-open.jsonl"
    answers.write_text(answers.read_text().replace('"readable": [0]', '"readable": [1]', 1))
    write_page(tmp_path, page)
    assert (
        page.read_bytes() != written["page.md"]
        and (tmp_path / "page-middle-1a.svg").read_bytes() != written["page-middle-1a.svg"]
    )


def test_the_tables_are_in_the_papers_shape_with_accuracy_and_layout_apart(tmp_path):
    write_runs(tmp_path, {"base": seeds(0.25), "sft": seeds(0.5), "rl": seeds(0.75)}, text=BARE_TEXT)
    text = write_page(tmp_path, tmp_path / "page.md") and (tmp_path / "page.md").read_text()
    assert "| arm | detection in | math in | classify in | detection out | math out | classify out |" in text
    table = text.split("**Table 1: SFT and RL**")[1].split("\n\n")[1].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| Base", "| SFT, bare golds", "| RL"]
    apart = text.split("### Greedy and sampled, accuracy and layout")[1].splitlines()
    four = next(line for line in apart if line.startswith("| RL |"))
    cells = [cell.split(" ")[0] for cell in four.strip("| ").split(" | ")]
    assert cells[1:] == ["75.0", "75.0", "0.0", "0.0", "75.0", "75.0", "0.0", "0.0"]
    assert "| Base | nothing | 4 |" in text and "4 seeds" in text
    gains = text.split("### Gain over the base")[1].splitlines()
    assert gains[2] == "| arm | judge in | choice in | open in | open out |"
    assert gains[5] == "| RL | " + " | ".join(["+50.0 points [+50.0, +50.0]"] * 4) + " |"


def test_the_page_says_on_what_it_rests_and_what_is_missing(tmp_path):
    write_runs(tmp_path, {"base": [0.25, 0.25], "rl": [0.5]})
    write_page(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "**middle: 2 arms, 1 to 2 seeds.** Missing: rl-1." in text
    write_runs(tmp_path / "one", {"base": [0.25], "rl": [0.5]})
    write_page(tmp_path / "one", tmp_path / "one.md")
    assert "With one seed, intervals are over rows and say nothing of other seeds." in (tmp_path / "one.md").read_text()


def test_the_control_rises_only_above_the_base(tmp_path):
    write_runs(tmp_path, {"base": seeds(0.5), "shuffled": seeds(0.5)})
    assert "shuffled rewards, accuracy of open rows in domain: **does not rise**" in write_page(
        tmp_path, tmp_path / "p.md"
    )
    write_runs(tmp_path / "up", {"base": seeds(0.5), "shuffled": [0.7, 0.75, 0.8, 0.75]})
    assert "**rises** (greedy and sampled)" in write_page(tmp_path / "up", tmp_path / "up.md")
    for seed, share in enumerate([0.7, 0.75, 0.8, 0.75]):
        for suite in rows_of().suites:
            folder = tmp_path / f"middle/shuffled-{seed}/answers" / SAMPLED / "shuffled"
            write_suite(folder, suite, seed, share, LAID_OUT)
    assert "**rises** (sampled)" in write_page(tmp_path, tmp_path / "p.md")
    assert CONTROL.second == "shuffled"


def test_the_dial_tells_the_pass_rate_at_which_the_curriculum_pays(tmp_path):
    accuracies = {"base": seeds(0.3), "rl": seeds(0.4), "curr_rl": [0.6, 0.65, 0.7, 0.65]}
    write_runs(tmp_path, accuracies, worlds=("middle", "hard"))
    write_page(tmp_path, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "The curriculum pays at a pass rate of 30.0%" in text and "| hard | 30.0 | +25.0 points" in text
    write_runs(tmp_path / "not", {**accuracies, "curr_rl": [0.2, 0.25, 0.3, 0.25]})
    write_page(tmp_path / "not", tmp_path / "not.md")
    text = (tmp_path / "not.md").read_text()
    assert "At none of the pass rates that were measured is the curriculum above RL on open rows alone." in text
    assert "| does not hold |" in text and "One world is one point" in text


def test_the_worlds_of_the_dial_are_one_table_for_holms_method(tmp_path):
    accuracies = {"base": seeds(0.3), "rl": [0.4] * 4, "curr_rl": [0.45, 0.5, 0.6, 0.5]}  # p = 0.038 on each world
    for worlds, says in ((("middle",), "The curriculum pays"), (("middle", "hard"), "At none of the pass rates")):
        runs = tmp_path / str(len(worlds))
        write_runs(runs, accuracies, worlds=worlds)
        write_page(runs, runs / "page.md")
        assert says in (runs / "page.md").read_text()


# ---------------------------------------------------------------------------------------------------------- running


def finishes(plan, run, code: int = 0) -> list[str]:
    """A command that finishes a run as its process does, or fails."""
    folder = plan.runs / run.name
    program = f"""
import json, pathlib, sys
folder = pathlib.Path({str(folder)!r})
folder.mkdir(parents=True)
print("the reason")
if not {code}:
    (folder / "run.json").write_text(json.dumps({{"finished": True}}))
sys.exit({code})
"""
    return [sys.executable, "-S", "-c", program]


@pytest.fixture
def commands(monkeypatch):
    """Starts commands in the place of runs, `codes` being the exit codes of some; lists what was started."""
    started, codes = [], {}

    def start(plan, run, arguments):
        started.append(run.name)
        path = execute._log_path(plan, run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            return subprocess.Popen(finishes(plan, run, codes.get(run.name, 0)), stdout=log)

    monkeypatch.setattr(execute, "_start", start)
    return started, codes


def test_runs_that_are_finished_are_skipped_and_a_failed_one_holds_up_what_waits_for_it(tmp_path, commands, capsys):
    started, codes = commands
    plan = plan_of(tmp_path, arms=["base", "rl", "sft_filtered"])
    codes["middle/pass_rates"] = 1
    assert execute.make_runs(plan, [], 2) == ["middle/pass_rates", "middle/sft_filtered-0"]
    assert "the reason" in capsys.readouterr().err
    assert sorted(started) == ["middle/base-0", "middle/pass_rates", "middle/rl-0"]
    started.clear()
    codes.clear()
    (tmp_path / "middle/pass_rates").rmdir()
    assert execute.make_runs(plan, [], 2) == []
    assert started == ["middle/pass_rates", "middle/sft_filtered-0"]


def test_a_run_that_was_asked_to_stop_stops_all(tmp_path, commands):
    _, codes = commands
    codes["middle/base-0"] = REQUEUE
    with pytest.raises(KeyboardInterrupt):
        execute.make_runs(plan_of(tmp_path, arms=["base", "rl"]), [], 1)


def test_a_workdir_of_other_sizes_is_not_continued(tmp_path):
    plan = plan_of(tmp_path, arms=["base"])
    (run,) = plan
    record = execute._open_record(plan, run, tmp_path / run.name)
    execute._write_record(tmp_path / run.name, record)
    other = plan_of(tmp_path, arms=["base"], sizes=replace(SIZES, rows_in=3))
    with pytest.raises(ValueError, match=r"run\.json: sizes was"):
        execute.make_run(other, run)


# Text rows, the smallest model: the whole way, in this process.
@pytest.mark.slow
def test_every_number_of_a_small_comparison_is_made_again_from_its_workdirs(checkpoint, tmp_path, monkeypatch):
    for split, names in (("train", ("judge-math", "choice-math", "open-math")), ("test", ("in-math", "out-math"))):
        (tmp_path / split).mkdir()
        for name in names:
            rows = [
                {
                    "id": f"{split}-{name}-{n}",
                    "task": "math",
                    "kind": "open",
                    "problem": f"{split} {n}?",
                    "solution": str(n),
                }
                for n in range(16)
            ]
            (tmp_path / split / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = config_of(checkpoint, tmp_path / "rows.jsonl")
    small.data.template, small.data.completion_lengths = "world", (32,)
    monkeypatch.setattr(arms, "CHECKPOINTS_PER_RUN", 1)
    curriculum = replace(small, stages=ingredients().curriculum.stages, rewards=common.base("p", "tiny").rewards)
    supervised = replace(small, method=Method.SFT)
    runs = tmp_path / "runs"
    sizes = replace(SIZES, steps=3, rows_in=6, rows_out=6)
    plan = make_plan(runs, curriculum, supervised, [rows_of_user(tmp_path, tmp_path)], ["base", "sft"], 1, sizes)
    keep_plan(plan)
    for run in plan:
        assert execute.make_run(plan, run)
    monkeypatch.setattr(execute.trainer, "run", lambda *_: pytest.fail("a finished run was trained again"))
    assert all(execute.make_run(plan, run) for run in plan)

    write_page(runs, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    write_page(runs, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == text
    for arm, title in (("base", "Base"), ("sft", "SFT, bare golds")):
        lines = (runs / f"rows/{arm}-0/answers/greedy/{arm}/in-math.jsonl").read_text().splitlines()
        right = [json.loads(line)["readable"][0] for line in lines]
        assert len(right) == 6 and f"| {title} |  | {100 * np.mean(right):.1f} ±" in text
    steps = (runs / "rows/sft-0/metrics.jsonl").read_text().splitlines()
    assert len(steps) == 3 and f"| SFT, bare golds | gold answers of open rows | 1 | 3 | 0 | {3 * 32} |" in text
    assert [path.name for path in (runs / "rows/sft-0/answers/progress").iterdir() if path.is_dir()] == ["3"]
    assert [path.name for path in (runs / "rows/sft-0/checkpoints").glob("[0-9]*")] == ["3"]


def test_help_names_every_arm():
    text = _parser().format_help()
    assert all(arm.name in text for arm in ARMS)


def test_sources_of_a_mixture_are_not_shared_between_arms():
    parts = ingredients()
    ARM_BY_NAME["mixed"].build(parts)
    assert parts.rows.train[Kind.JUDGE] == [Source("judge-a.jsonl"), Source("judge-b.jsonl")]
