"""Held-out answers before and after training: which are compared, which are drawn, and their boxes."""

import json
import re

import pytest

from currreft_jax.data.fields import LineError
from currreft_jax.report import __main__ as program
from currreft_jax.report.before_after import ROWS_SHOWN, before_after_json, draw_changes, find_comparisons
from currreft_jax.report.page import MAX_BYTES
from currreft_jax.report.runs import read_run
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.forgetting_gate import GateDecision
from tests.report.workdirs import held_out_answer, write_image, write_lines, write_run


def before_after_of(workdir, max_bytes=MAX_BYTES):
    text, counts = before_after_json(read_run(workdir), max_bytes)
    assert len(text.encode()) <= max_bytes
    return json.loads(text), counts


def write_held_out(folder, step, rewards, held_out="one", **row):
    """Writes answers of these rewards, by index; returns them."""
    answers = [held_out_answer(index, reward, held_out, **row) for index, reward in enumerate(rewards)]
    write_lines(folder / "held_out" / f"{step}.jsonl", answers)
    return answers


def test_the_base_is_compared_with_the_end_of_each_stage_and_of_the_run(tmp_path):
    write_run(tmp_path, stages=("one", "two", "last"))
    names = ("one", "two", "two/out_of_domain")  # the last stage has no rows of its own

    def write(folder, step, reward, *hosts):
        for host in hosts or [""]:
            answers = [held_out_answer(index, reward, name) for name in names for index in range(2)]
            write_lines(
                tmp_path / folder / "held_out" / f"{step}{host}.jsonl", answers[int(host[1:] or 0) :: len(hosts) or 1]
            )

    write("one", 0, 0.0, "-0", "-1")
    write("one", 20, 0.5)
    write("two", 0, 9.0)  # the start of a stage with a forgetting gate
    write("two", 10, 1.0)  # promoted
    write("last", 20, 2.0)
    comparisons, problem = find_comparisons(read_run(tmp_path))
    found = [(one.held_out, one.stage, one.step, [change.difference for change in one.changes]) for one in comparisons]
    assert not problem and found == [
        ("one", "one", 20, [0.5, 0.5]),
        ("two", "two", 10, [1.0, 1.0]),
        ("two/out_of_domain", "two", 10, [1.0, 1.0]),
        ("two", "last", 20, [2.0, 2.0]),
    ]
    matrix = ForgettingMatrix(tmp_path / "curriculum.json", writes=True)
    matrix.decide(GateDecision("last", 20, 10, 0.1, ()))
    assert [one["kept_step"] for one in before_after_of(tmp_path)[0]["comparisons"]] == [20, 10, 10, 10]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((), "recorded before the first step"),
        ((20,), "recorded before the first step"),
        ((0,), "end of the first stage"),
    ],
)
def test_a_run_without_answers_before_or_after_says_so(tmp_path, steps, problem):
    write_run(tmp_path)
    for step in steps:
        write_held_out(tmp_path, step, [1.0])
    found, counts = before_after_of(tmp_path)
    assert problem in found["problem"] and found["comparisons"] == [] and counts == {"shown": 0, "missing": 0}


def test_rows_are_drawn_by_the_seed_whether_better_or_worse_and_tasks_take_turns(tmp_path):
    """Of 60 rows 20 are better, 20 worse and 20 the same, and two of three are of mathematics."""
    write_run(tmp_path)
    tasks = [{"task": "classify" if index % 3 else "math", "kind": "judge"} for index in range(60)]
    for step, change in ((0, [0, 0, 0]), (20, [0.5, 0, -0.5])):
        answers = [held_out_answer(index, 1 + change[index // 20], **keys) for index, keys in enumerate(tasks)]
        write_lines(tmp_path / "held_out" / f"{step}.jsonl", answers)
    (compared,), _ = find_comparisons(read_run(tmp_path))
    drawn = [draw_changes(compared, seed) for seed in range(40)]
    assert drawn[0] == draw_changes(compared, 0) != drawn[1]
    assert {change.before.row.task.value for change in drawn[0][::2]} == {"classify"}
    assert {change.before.row.task.value for change in drawn[0][1::2]} == {"math"}
    differences = [change.difference for changes in drawn for change in changes]
    assert len(differences) == 40 * ROWS_SHOWN and set(differences) == {-0.5, 0.5}
    assert 0.4 < differences.count(0.5) / len(differences) < 0.6
    (record,) = before_after_of(tmp_path)[0]["comparisons"]
    assert (record["improved"], record["worsened"], record["equal"]) == (20, 20, 20)
    assert [row["id"] for row in record["rows"]] == [change.before.row.id for change in drawn[0]]


def test_boxes_of_both_answers_are_relative_to_the_image(tmp_path):
    write_run(tmp_path)
    row = {"task": "detection", "kind": "open", "image": str(write_image(tmp_path / "a.png")), "frame": [84, 84]}
    row |= {"problem": "where?", "solution": "[21, 42, 63, 84]", "resized": [168, 168]}
    for step, box, reward in ((0, [0, 0, 84, 84], 0.0), (20, [42, 84, 126, 168], 2.0)):
        write_held_out(tmp_path, step, [reward], text=f"<think> a </think> <answer> {box} </answer>", **row)
    found, counts = before_after_of(tmp_path)
    (shown,) = found["comparisons"][0]["rows"]
    assert shown["gold_boxes"] == [[0.25, 0.5, 0.75, 1]] and shown["prompt"] == "where?"
    before, after = shown["completions"]
    assert (before["name"], before["reward"], before["boxes"]) == ("before", 0.0, [[0, 0, 0.5, 0.5]])
    assert (after["name"], after["reward"], after["boxes"]) == ("after", 2.0, [[0.25, 0.5, 0.75, 1]])
    assert before["reasons"] == {"accuracy": "not_equal"} and shown["difference"] == 2.0
    assert len(found["images"]) == 1 and counts == {"shown": 1, "missing": 0}


def test_a_row_without_a_frame_has_that_of_its_image_and_a_missing_image_is_counted(tmp_path):
    write_run(tmp_path)
    row = {"task": "detection", "kind": "open", "problem": "where?", "solution": "[21, 42, 63, 84]"}
    images = [write_image(tmp_path / "a.png"), tmp_path / "none.png"]
    for step in (0, 20):
        answers = [held_out_answer(k, float(step), image=str(image), **row) for k, image in enumerate(images)]
        write_lines(tmp_path / "held_out" / f"{step}.jsonl", answers)
    found, counts = before_after_of(tmp_path)
    boxes = {shown["id"]: shown["gold_boxes"] for shown in found["comparisons"][0]["rows"]}
    assert boxes == {"row-0": [[0.25, 0.5, 0.75, 1]], "row-1": []} and counts == {"shown": 2, "missing": 1}


def test_rows_that_do_not_fit_are_left_out_and_counted(tmp_path):
    write_run(tmp_path)
    for step in (0, 20):
        write_held_out(tmp_path, step, [float(step)] * 8, problem="?" * 400)
    found, counts = before_after_of(tmp_path, 5_000)
    assert 0 < counts["shown"] < 8 and found["left_out"] == 8 - counts["shown"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": 3}, r'held_out/20\.jsonl:1: "row" is 3; it takes an object'),
        ({"answer": {"text": "a"}}, r'20\.jsonl:1: answer: "finished" is missing'),
        ({"index": "a"}, r'20\.jsonl:1: "index" is "a"; it takes a whole number'),
    ],
)
def test_damage_is_reported_with_file_and_line(tmp_path, change, message):
    write_run(tmp_path)
    (answer,) = write_held_out(tmp_path, 0, [1.0])
    write_lines(tmp_path / "held_out" / "20.jsonl", [answer | change])
    with pytest.raises(LineError, match=message):
        before_after_of(tmp_path)


def test_the_program_counts_the_rows(tmp_path, capsys):
    write_run(tmp_path)
    write_held_out(tmp_path, 0, [0.0, 1.0])
    write_held_out(tmp_path, 20, [1.0, 1.0])
    program.main([str(tmp_path)])
    assert "report: 0 of 0 groups of completions, 1 row before and after training, 0.1 MB" in capsys.readouterr().err
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)
    assert json.loads(data)["beforeAfter"]["comparisons"][0]["rows"][0]["id"] == "row-0"
