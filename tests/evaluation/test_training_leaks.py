"""Leaks: a suite's images among the training rows of the runs that made a model."""

import pytest

from currreft_jax.config import Config, Data, EvaluatedModel, Pretrained, Source, Stage
from currreft_jax.evaluation.suites import SuiteError, load_suites
from currreft_jax.evaluation.training_leaks import find_training_leaks, refuse_leaks
from currreft_jax.runtime.workdir import write_config
from tests.evaluation.suites import evaluation_of, write_rows


def write_run(folder, *files, path="base"):
    """Writes the folders of a run with one stage for each file."""
    stages = [Stage(f"stage{index}", [Source(str(file))]) for index, file in enumerate(files, 1)]
    config = Config(stages=stages, model=Pretrained(path=str(path)))
    stage_dirs = [folder / stage.name for stage in stages] if len(stages) > 1 else [folder]
    for stage_dir in stage_dirs:
        write_config(config, stage_dir)
        (stage_dir / "checkpoints" / "5").mkdir(parents=True)
    return stage_dirs


@pytest.fixture
def files(tmp_path):
    """Training rows of images 0 and 1, and of 2 and 3; test rows of images 1 and 2, by pixels."""
    first = write_rows(tmp_path / "train", "first", 2)
    second = write_rows(tmp_path / "train", "second", 2, first_image=2)
    return first, second, write_rows(tmp_path / "test", "test", 2, first_image=1)


def leaks(model, file):
    suites, images = load_suites(evaluation_of([file]))
    return find_training_leaks(EvaluatedModel(str(model)), suites, images, 1)


def locations(report):
    return [finding.location.rpartition(":")[2] for finding in report.findings["test"]]


def test_a_stage_has_seen_the_rows_of_the_stages_up_to_it(files, tmp_path):
    first, second, test = files
    stage1, stage2 = write_run(tmp_path / "run", first, second)
    for model in (stage1, stage1 / "model", stage1 / "checkpoints" / "5"):
        assert locations(leaks(model, test)) == ["1"]
    report = leaks(stage2, test)
    assert locations(report) == ["1", "2"] and report.summary("test") == 2
    assert report.template == Data().template
    with pytest.raises(SuiteError, match=r"was trained on 2 images or questions of test.*allow_leaks") as error:
        refuse_leaks("run/stage2", report)
    assert f"{test}:1: " in str(error.value) and f"{first}:2" in str(error.value)


def test_a_run_has_also_seen_the_rows_of_the_run_that_it_started_from(files, tmp_path):
    first, second, test = files
    (earlier,) = write_run(tmp_path / "earlier", first)
    (later,) = write_run(tmp_path / "later", second, path=earlier / "model")
    assert sorted(locations(leaks(later, test))) == ["1", "2"]


def test_other_images_are_no_leak(files, tmp_path):
    first, second, _ = files
    (run,) = write_run(tmp_path / "run", first)
    suites, images = load_suites(evaluation_of([second]))
    report = find_training_leaks(EvaluatedModel(str(run)), suites, images, 1)
    assert report.summary("second") == 0
    refuse_leaks("run", report)


def test_a_text_question_of_training_is_a_leak(tmp_path):
    train, test = (write_rows(tmp_path / name, "test", 2, images=0) for name in ("train", "test"))
    (run,) = write_run(tmp_path / "run", train)
    assert leaks(run, test).summary("test") == 2


def test_what_cannot_be_checked_is_said(files, tmp_path):
    first, _, test = files
    assert "of no run" in str(leaks("Qwen/Qwen2.5-VL-3B-Instruct", test).summary("test"))
    (run,) = write_run(tmp_path / "run", first)
    first.unlink()
    report = leaks(run, test)
    assert "cannot be read" in report.unchecked and str(first) in report.unchecked
