"""Evaluations without a model: files, manifests, resumption to the row, refusals before the first answer."""

import json
import threading

import pytest

from currreft_jax.config import EvaluatedModel, ImageCondition, Kind, ScorerName
from currreft_jax.evaluation import runner
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.evaluation.compare import read_model_answers
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.progress import Progress
from currreft_jax.evaluation.statistics import pass_at_k
from currreft_jax.evaluation.summary import summary_table
from currreft_jax.evaluation.training_leaks import LeakReport
from tests.evaluation.suites import Echo, evaluation_of, write_rows


@pytest.fixture
def evaluation(tmp_path):
    files = [write_rows(tmp_path / "rows", "one", 7), write_rows(tmp_path / "rows", "two", 3, images=0)]
    return evaluation_of(files, images=(ImageCondition.ORIGINAL, ImageCondition.BLANK))


def evaluate(evaluation, out, **options):
    echoes, lines = [], []

    def open_echo(model, evaluation, out, log):
        echoes.append(Echo(model, evaluation, **options))
        return echoes[-1]

    files = runner.evaluate(evaluation, out, lines.append, open_echo)
    return files, echoes, lines


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.json*"))}


def test_each_model_and_suite_has_its_file_and_its_manifest(evaluation, tmp_path):
    files, _, _ = evaluate(evaluation, tmp_path / "out")
    names = [f"{model}/{suite}" for model in ("models-a", "models-b") for suite in ("one", "one.blank", "two")]
    assert [str(file.path.relative_to(tmp_path / "out")) for file in files] == [f"{name}.jsonl" for name in names]
    answers = list(read_answers(files[0].path))
    assert [answer.row for answer in answers] == [f"one-{index}" for index in range(7)]
    assert {answer.strict for answer in answers} == {(1,)}
    assert {answer.strict for answer in read_answers(files[3].path)} == {(0,)}
    manifest = json.loads(manifest_path(files[1].path).read_text())
    assert manifest["images"] == "blank" and manifest["rows"]["count"] == 7
    assert manifest["rows"]["files"][0]["hash"] != "missing"


def test_a_manifest_names_the_files_of_rows_with_their_defaults(evaluation, tmp_path):
    ((one,), (two,)) = (suite.sources for suite in evaluation.suites)
    two.kind, two.image_root = Kind.OPEN, str(tmp_path)
    evaluate(evaluation, tmp_path / "out")
    suites = read_model_answers(tmp_path / "out" / "models-a").suites
    assert {suite.suite: suite.sources for suite in suites} == {"one": (one,), "two": (two,)}


@pytest.mark.parametrize("kept", [0, 1, 2.5, 3, 6.2])
def test_an_evaluation_that_was_killed_ends_with_the_same_bytes(evaluation, tmp_path, kept):
    evaluate(evaluation, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, tmp_path / "part", stop_after=0)
    whole, part = (tmp_path / name / "models-a" / "one.jsonl" for name in ("whole", "part"))
    lines = whole.read_bytes().splitlines(keepends=True)
    rest = lines[int(kept)]
    part.write_bytes(b"".join(lines[: int(kept)]) + rest[: round(len(rest) * (kept % 1))])
    _, echoes, _ = evaluate(evaluation, tmp_path / "part")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    rest = [f"one-{index}" for index in range(int(kept), 7)]
    assert echoes[0].prepared[: len(rest)] == rest
    assert sorted(echoes[0].asked) == sorted(echoes[0].prepared)  # each row that has no answer, once


def test_what_is_in_order_is_written_when_a_run_ends_early(evaluation, tmp_path):
    """Answers come in the order 2 1 0, 5 4 3, ...: after four of them three can be written, after six all."""
    for stop_after, written in ((2, 0), (4, 3), (6, 6)):
        out = tmp_path / str(stop_after)
        with pytest.raises(KeyboardInterrupt):
            evaluate(evaluation, out, stop_after=stop_after)
        rows = [answer.row for answer in read_answers(out / "models-a" / "one.jsonl")]
        assert rows == [f"one-{index}" for index in range(written)]


def test_scoring_holds_up_no_answer_and_writes_nothing_after_an_error(tmp_path, monkeypatch):
    """The first scores come when all rows are answered; the second ones fail, and the third are not written."""
    evaluation = evaluation_of([write_rows(tmp_path / "rows", "one", 24)])
    answered, batches, score = threading.Event(), [], runner.score_answers

    def scored(rows, **settings):
        assert answered.wait(10)
        batches.append(len(rows))
        if len(batches) == 2:
            raise OSError("no scores")
        return score(rows, **settings)

    class Told(Echo):
        def answers(self, questions):
            yield from super().answers(questions)
            answered.set()

    monkeypatch.setattr(runner, "score_answers", scored)
    with pytest.raises(OSError, match="no scores"):
        runner.evaluate(evaluation, tmp_path / "out", lambda _: None, lambda model, settings, *_: Told(model, settings))
    rows = [answer.row for answer in read_answers(tmp_path / "out" / "models-a" / "one.jsonl")]
    assert rows == [f"one-{index}" for index in range(batches[0])] and len(batches) == 2


def test_every_suite_is_checked_before_the_first_answer(evaluation, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        echoes = []

        def open_echo(model, evaluation, out, log):
            echoes.append(Echo(model, evaluation, stop_after=0))
            return echoes[-1]

        runner.evaluate(evaluation, tmp_path, lambda _: None, open_echo)
    for echo in echoes:
        assert echo.checked == [f"one-{index}" for index in range(7)] + [f"two-{index}" for index in range(3)]


def test_a_finished_evaluation_asks_nothing_again(evaluation, tmp_path):
    evaluate(evaluation, tmp_path / "out")
    _, echoes, _ = evaluate(evaluation, tmp_path / "out")
    assert not any(echo.asked or echo.prepared for echo in echoes)


def test_models_are_closed_after_an_error_too(evaluation, tmp_path):
    echoes = []

    def open_echo(model, evaluation, out, log):
        echoes.append(Echo(model, evaluation, stop_after=0))
        return echoes[-1]

    with pytest.raises(KeyboardInterrupt):
        runner.evaluate(evaluation, tmp_path / "out", lambda _: None, open_echo)
    assert [echo.closed for echo in echoes] == [True, True]


def test_answers_of_other_settings_are_not_continued(evaluation, tmp_path):
    evaluate(evaluation, tmp_path / "out")
    evaluation.sampling.max_new_tokens = 7
    with pytest.raises(
        ValueError,
        match=r"models-a/one.manifest.json: decoding.max_new_tokens was 512, and is 7: write to another --out",
    ):
        evaluate(evaluation, tmp_path / "out")
    evaluation.sampling.max_new_tokens = 512
    evaluation.scorer = ScorerName.OFFICIAL
    with pytest.raises(ValueError, match=r"scorer\.name was"):
        evaluate(evaluation, tmp_path / "out")


def test_answers_to_changed_rows_are_not_continued(evaluation, tmp_path):
    evaluate(evaluation, tmp_path / "out")
    path = tmp_path / "rows" / "two.jsonl"
    path.write_text(path.read_text().replace('"solution": 2', '"solution": 5'))
    with pytest.raises(ValueError, match=r"two.manifest.json: rows.files was"):
        evaluate(evaluation, tmp_path / "out")


def test_nothing_is_answered_where_something_is_refused(evaluation, tmp_path):
    (tmp_path / "rows" / "one-1.png").unlink()
    with pytest.raises(ValueError, match=r"one-1.png is missing"):
        evaluate(evaluation, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_a_leak_is_refused_and_may_be_allowed(evaluation, tmp_path):
    from tests.evaluation.test_training_leaks import write_run

    (run,) = write_run(tmp_path / "run", tmp_path / "rows" / "one.jsonl")
    evaluation.models = [EvaluatedModel(str(run), "a")]
    with pytest.raises(ValueError, match="was trained on 7 images or questions of one"):
        evaluate(evaluation, tmp_path / "out")
    evaluation.allow_leaks = True
    files, _, _ = evaluate(evaluation, tmp_path / "out")
    assert json.loads(manifest_path(files[0].path).read_text())["leaks"] == 7


def test_the_table_has_both_readings_and_the_drop(evaluation, tmp_path):
    evaluation.scorer = ScorerName.OFFICIAL
    files, _, _ = evaluate(evaluation, tmp_path / "out")
    lines = files[1].path.read_text().splitlines(keepends=True)  # half of the blank answers become wrong
    wrong = [line.replace('"readable": [1]', '"readable": [0]') for line in lines[:3]]
    files[1].path.write_text("".join([*wrong, *lines[3:]]))
    heading, one, other, *_ = (line.split() for line in summary_table(files).splitlines())
    columns = "suite kind and task model rows strict readable score cut off official drop, blank not strict because"
    assert " ".join(heading) == columns
    assert " ".join(one) == "one (in) open math models-a 7 100.0 100.0 100.0 0.0 100.0 42.9 -"
    assert " ".join(other[:8]) == "one (in) open math models-b 7 0.0 0.0"
    assert other[-2:] == ["not_equal", "7"]


@pytest.mark.parametrize(
    ("samples", "right", "k", "chance"),
    [(4, 0, 2, 0.0), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 3, 2, 1.0), (2, 1, 2, 1.0)],
)
def test_pass_at_k_counts_the_subsets_with_a_right_sample(samples, right, k, chance):
    assert pass_at_k(samples, right, k) == pytest.approx(chance)


def test_progress_tells_the_time_left_from_the_rows_answered_now():
    lines, now = [], 0.0

    def clock():
        return now

    progress = Progress(100, lines.append, clock)
    progress.begin("a/one", 60, done=20)
    now = 60.0  # of the first rows, which wait for what compiles
    for _ in range(4):
        progress.add("a/one", 10)
        now += 6
    assert lines == [
        "a/one: 30/60 rows",
        "a/one: 50/60 rows, 1.7 rows/s, 0:00:30 left in all",
        "a/one: 60/60 rows, 1.7 rows/s, 0:00:24 left in all",
    ]
    now = 100.0  # compiling
    progress.begin("a/two", 40, done=0)
    for now in (150.0, 156.0, 162.0):  # noqa: B007
        progress.add("a/two", 10)
    assert lines[3:] == [
        "a/two: 10/40 rows, 1.7 rows/s, 0:00:18 left in all",
        "a/two: 30/40 rows, 1.7 rows/s, 0:00:06 left in all",
    ]


@pytest.mark.parametrize("template", ["", "paper", "world"])
def test_another_prompt_template_than_that_of_training_is_told(tmp_path, monkeypatch, template):
    report = LeakReport({}, template=template)
    monkeypatch.setattr(runner, "find_training_leaks", lambda *_: report)
    evaluation, told = evaluation_of([write_rows(tmp_path, "test", 1)]), []
    assert runner._find_leaks(evaluation, EvaluatedModel("runs/demo"), [], {}, told.append) is report
    assert [("--config.template=world" in line) for line in told] == [True] * (template == "world")
