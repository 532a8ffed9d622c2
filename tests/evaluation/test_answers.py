"""Answers files: what is written is read, damage is refused with its line, and a torn last line is written again."""

from dataclasses import replace

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import LineError
from currreft_jax.evaluation.answers import Answer, AnswersWriter, answer_line, parse_answer, read_answers

ANSWER = Answer(
    row="7",
    image="0f3a",
    task=Task.DETECTION,
    kind=Kind.OPEN,
    completions=("<think> a </think> <answer> [1, 2, 3, 4] </answer>", "né"),
    strict=(1, 0),
    readable=(1, 0),
    strict_score=(0.75, 0.0),
    readable_score=(0.75, 0.25),
    reasons=(None, "no_answer_tag"),
    decided=("answer", "none"),
    finished=(True, False),
)
ANSWERS = [
    replace(ANSWER, row=str(index), **({"official": (1, 1), "resized": (56, 28)} if index % 2 else {}))
    for index in range(5)
]
ROWS = [answer.row for answer in ANSWERS]


def write(path, answers=ANSWERS):
    with AnswersWriter(path, ROWS) as writer:
        writer.write(answers[writer.count :])


def test_answers_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "model" / "suite.jsonl")
    assert list(read_answers(tmp_path / "model" / "suite.jsonl")) == ANSWERS


@pytest.mark.parametrize("cut", [1, 30, "line", "lines"])
def test_a_file_that_was_cut_off_anywhere_is_completed_to_the_same_bytes(tmp_path, cut):
    write(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    kept = {"line": first, "lines": 2 * first}.get(cut, first + cut if isinstance(cut, int) else 0)
    (tmp_path / "part.jsonl").write_bytes(whole[:kept])
    if isinstance(cut, int):
        with pytest.raises(LineError, match=r"part.jsonl:2: the line is cut off"):
            list(read_answers(tmp_path / "part.jsonl"))
    write(tmp_path / "part.jsonl")
    assert (tmp_path / "part.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strict": [1]}, '"strict" is .*2 0 or 1'),
        ({"readable": [1, 2]}, '"readable" is .*0 or 1'),
        ({"strict_score": [0.5, 1.5]}, r'"strict_score" is .*\[0, 1\]'),
        ({"completions": []}, '"completions" is .*at least one'),
        ({"kind": "chat?"}, '"kind" is .*judge, choice'),
        ({"finished": [1, 0]}, '"finished" is .*true or false'),
        ({"reasons": None}, '"reasons" is null'),
        ({"official": [1]}, '"official" is'),
    ],
)
def test_a_damaged_line_is_refused_by_file_line_and_key(tmp_path, change, message):
    import json

    line = json.dumps(json.loads(answer_line(ANSWERS[1])) | change) + "\n"
    path = tmp_path / "suite.jsonl"
    path.write_text(answer_line(ANSWERS[0]) + line)
    with pytest.raises(LineError, match=f"suite.jsonl:2: {message}"):
        list(read_answers(path))
    with pytest.raises(LineError, match=f"suite.jsonl:2: {message}"):
        AnswersWriter(path, ROWS)


def test_answers_to_other_rows_are_not_continued(tmp_path):
    path = tmp_path / "suite.jsonl"
    path.write_text(answer_line(ANSWERS[1]))
    with pytest.raises(LineError, match=r"suite.jsonl:1: row '1' is not the suite's; remove the file"):
        AnswersWriter(path, ROWS)
    path.write_text("".join(map(answer_line, ANSWERS)))
    with pytest.raises(LineError, match=r"suite.jsonl:3: row '2' is not the suite's"):
        AnswersWriter(path, ROWS[:2])


def test_a_line_holds_the_documented_keys():
    import json

    assert parse_answer(answer_line(ANSWER), "here") == ANSWER
    assert list(json.loads(answer_line(ANSWERS[1]))) == [
        *("row", "image", "task", "kind", "completions", "strict", "readable", "strict_score", "readable_score"),
        *("reasons", "decided", "finished", "official", "resized"),
    ]
