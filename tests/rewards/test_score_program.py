import io
import json
import subprocess
import sys

import numpy as np
import pytest

from currreft_jax import score
from currreft_jax.evaluation.completions_file import parse_completion_line, score_table
from currreft_jax.structs import Scores
from tests.rewards.helpers import well_formed

ROWS = [
    {"kind": "judge", "task": "detection", "solution": "yes", "completion": well_formed("Yes.")},
    {"kind": "choice", "task": "math", "solution": "<answer>A, C</answer>", "completion": well_formed("A"), "id": "m7"}
    | {"options": ["1", "2", "3"], "multiple": True, "problem": "which?"},
    {"kind": "open", "task": "math", "solution": r"2\sqrt{3}", "completion": well_formed(r"\sqrt{12}")},
    {"kind": "open", "task": "math", "solution": r"2\sqrt{3}", "completion": well_formed("9^{9^{9^{9}}}")},
    {"kind": "open", "task": "detection", "solution": "[0, 0, 10, 20]", "completion": well_formed("[0, 0, 20, 20]")}
    | {"frame": [20, 20], "resized": [40, 20]},
    {"kind": "open", "task": "classify", "solution": "dog, dining table", "completion": "<answer>dog</answer>"},
    {
        "kind": "judge",
        "task": "math",
        "solution": "no",
        "completion": well_formed("no"),
        "finished": False,
        "num_tokens": 9,
    },
]

VERDICTS = [
    {"id": "1", "total": 2.0, "accuracy": 1.0, "format": 1.0, "reason": None},
    {"id": "m7", "total": 1.2, "accuracy": 0.2, "format": 1.0, "reason": "not_equal"},
    {"id": "3", "total": 2.0, "accuracy": 1.0, "format": 1.0, "reason": None},
    {"id": "4", "total": 1.0, "accuracy": 0.0, "format": 1.0, "reason": "timeout"},
    {"id": "5", "total": 2.0, "accuracy": 1.0, "format": 1.0, "reason": None},
    {"id": "6", "total": 0.5, "accuracy": 0.5, "format": 0.0, "reason": "labels_differ"},
    {"id": "7", "total": 0.0, "accuracy": 0.0, "format": 0.0, "reason": "truncated"},
]

TABLE = """\
kind    task          rows       total    accuracy      format
choice  math             1       1.200       0.200       1.000
judge   detection        1       2.000       1.000       1.000
judge   math             1       0.000       0.000       0.000
open    classify         1       0.500       0.500       0.000
open    detection        1       2.000       1.000       1.000
open    math             2       1.500       0.500       1.000
all                      7       1.243       0.529       0.714

kind    task          rows   reasons
choice  math             1   not_equal 1
judge   math             1   truncated 1
open    classify         1   bad_layout 1, labels_differ 1
open    math             1   timeout 1
"""


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "currreft_jax.score", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Run the program in this process; return the error it exits with, after checking that it printed nothing."""

    def call(*arguments: str, text: str = "") -> str:
        monkeypatch.setattr(sys, "argv", ["score", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with pytest.raises(SystemExit) as exit:
            score.main()
        assert capsys.readouterr().out == ""
        return str(exit.value.code)

    return call


def test_a_file_is_scored(tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text(lines(ROWS) + "\n")
    done = run(str(file), "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == TABLE
    assert [json.loads(line) for line in out.read_text().splitlines()] == VERDICTS


def test_a_pipe_is_scored():
    done = run("-", "--out", "-", text=lines(ROWS[:2]))
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == VERDICTS[:2]
    assert done.stderr.startswith("kind    task ")


def test_byte_order_marks_and_numbers_as_solutions_are_read(tmp_path, monkeypatch, capsys):
    row = {"kind": "open", "task": "math", "solution": 4, "completion": well_formed("4")}
    file, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text(f"\ufeff\n\ufeff{lines([row, row | {'solution': 2.5}])}", "utf-8")
    for name, stdin in ((str(file), ""), ("-", file.read_text("utf-8"))):
        monkeypatch.setattr(sys, "argv", ["score", name, "--out", str(out)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        score.main()
        verdicts = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(verdict["id"], verdict["accuracy"]) for verdict in verdicts] == [("2", 1.0), ("3", 0.0)]
    assert capsys.readouterr().err == ""


def test_settings_change_the_scores():
    rows = [
        {"kind": "choice", "task": "math", "multiple": True, "solution": "A, C", "completion": well_formed("A, B")},
        {"kind": "open", "task": "detection", "solution": "[0, 0, 10, 10]", "completion": well_formed("[0, 0, 10, 4]")},
        {
            "kind": "open",
            "task": "detection",
            "solution": "[0, 0, 10, 10]",
            "completion": well_formed("[0, 0, 10, 10],"),
        },
    ]
    settings = ["--partial-credit", "overlap", "--detection", "soft_iou", "--weight", "format=0.5"]
    settings += ["--box-reading", "json"]
    done = run("-", "--out", "-", *settings, text=lines(rows))
    assert [json.loads(line)["total"] for line in done.stdout.splitlines()] == pytest.approx([0.7, 0.9, 0])
    done = run("-", "--detection", "f1", "--tau", "0.3", "--weight", "format=0", text=lines(rows[1:]))
    assert "open    detection        2       1.000       1.000\n" in done.stdout


def test_a_reward_of_ones_own_reads_further_keys_and_may_fail(tmp_path, monkeypatch, capsys):
    (tmp_path / "score_gauge.py").write_text(
        "from currreft_jax.structs import Verdict\n"
        "def within(row, completion, answer, frame):\n"
        "    close = abs(float(answer) - float(row.solution)) <= row.extra['tolerance']\n"
        "    return Verdict(1.0) if close else Verdict(0.0, 'off the mark')\n"
    )
    row = {"kind": "open", "task": "other", "solution": "70", "tolerance": 5}
    rows = [
        row | {"completion": f"<think> a </think> <answer>{answer}</answer>"}
        for answer in ("71", "80", "about 71", "some 72")
    ]
    (tmp_path / "answers.jsonl").write_text(lines(rows))
    monkeypatch.syspath_prepend(tmp_path)
    command = ["score", str(tmp_path / "answers.jsonl"), "--weight", "score_gauge:within=1", "--on-error", "zero"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", "-"])
    score.main()
    printed = capsys.readouterr()
    verdicts = [json.loads(line) for line in printed.out.splitlines()]
    assert [(line["total"], line["accuracy"], line["reason"]) for line in verdicts] == [
        (2, None, None),
        (1, None, "off the mark"),
        (1, None, "reward_failed"),
        (1, None, "reward_failed"),
    ]
    (failed,) = (line for line in printed.err.splitlines() if "count as 0" in line)
    assert failed.startswith("score: 2 count as 0, the first: ")
    assert "score_gauge.py:3: reward 'score_gauge:within', row 3" in failed
    assert "open    other            4       1.250           -       1.000               0.250\n" in printed.err


def test_keys_that_no_rule_reads_are_named():
    done = run("-", text=lines([ROWS[0] | {"otpions": [], "model": "m"}]))
    assert done.returncode == 0
    assert done.stderr == "score: keys that only rewards of your own can use: model, otpions\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "score: standard input holds no rows; write one JSON object a line"),
        ("{", "score: standard input:1: not JSON"),
        ("[" * 5000, "score: standard input:1: not JSON"),
        ("[]", "score: standard input:1: a list; write one object a line"),
        ({"kind": None}, ':2: "kind" is missing; it takes judge, choice, open, chat'),
        ({"kind": "opne"}, ':2: "kind" is "opne"; it takes judge, choice, open, chat'),
        ({"kind": "chat"}, ":2: no rule scores chat rows"),
        ({"task": ["math"]}, ':2: "task" is ["math"]; it takes detection, classify, math'),
        ({"solution": True}, ':2: "solution" is true; it takes a string: the gold answer'),
        ({"completion": None}, ':2: "completion" is missing; it takes a string: what the model wrote'),
        ({"id": 1.5}, ':2: "id" is 1.5'),
        ({"options": "A"}, ':2: "options" is "A"; it takes a list of at most 26 strings'),
        ({"options": [1]}, ':2: "options" is [1]; it takes a list of at most 26 strings'),
        ({"multiple": 1}, ':2: "multiple" is 1; it takes true or false'),
        ({"frame": [20]}, ':2: "frame" is [20]; it takes [width, height], in pixels'),
        ({"frame": [20, 0]}, ':2: "frame" is [20, 0]'),
        ({"num_tokens": -1}, ':2: "num_tokens" is -1'),
        ({"finished": "no"}, ':2: "finished" is "no"'),
        ({"solution": "maybe"}, ":2: solution 'maybe' is no gold answer (not_yes_or_no)"),
        ({"kind": "open", "solution": "x"}, ":2: solution 'x' is no gold answer (bad_json)"),
        (
            {"kind": "open", "solution": "[0,0,9,9]", "resized": [5, 5]},
            ":2: the model saw Frame(width=5, height=5)",
        ),
        (
            {"kind": "open", "task": "math", "solution": "\\foo{"},
            ":2: solution '\\\\foo{': math-verify cannot read",
        ),
    ],
)
def test_a_line_that_cannot_be_scored_is_refused_with_a_remedy(text, message, refusal):
    if isinstance(text, dict):
        row = {key: value for key, value in (ROWS[0] | text).items() if value is not None}
        text = lines([ROWS[0], row])
    assert message in refusal("-", text=text)


def test_invalid_gold_answers_are_counted(tmp_path, refusal):
    file = tmp_path / "rows.jsonl"
    golds = ["yes", "maybe", "perhaps"]
    rows = [ROWS[0] | {"solution": gold} for gold in golds] * 9 + [ROWS[4] | {"solution": "x"}]
    file.write_text(lines(rows))
    first, second = refusal(str(file)).splitlines()
    assert first.startswith(f"score: {file}:2: solution 'maybe' is no gold answer (not_yes_or_no)")
    assert first.endswith("expects yes or no (18 rows)")
    assert second.startswith(f"       {file}:28: solution 'x' is no gold answer (bad_json)")
    assert second.endswith(" (1 row)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_file"], "score: there is no file no_such_file in "),
        (["-", "--weight", "format"], "score: --weight format: write NAME=NUMBER"),
        (["-", "--weight", "format=x"], "score: --weight format=x: write NAME=NUMBER"),
        (["-", "--weight", "formt=1"], "names 'formt'; write package.module:function, or one of accuracy"),
        (["-", "--weight", "length=1"], "num_tokens is unknown; give it"),
        (["-", "--tau", "2"], "score: rewards.tau is 2.0; it takes an IoU in (0, 1]"),
        (["-", "--out", "/no/such/folder/x"], "score: there is no file /no/such/folder/x; there is no folder /no"),
    ],
)
def test_invalid_flags_are_refused_with_a_remedy(arguments, message, refusal):
    assert message in refusal(*arguments, text=lines(ROWS[:1]))


def test_a_file_that_is_not_utf8_is_refused(tmp_path, refusal):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xff\xfe{")
    assert f"score: {file} is not UTF-8" in refusal(str(file))


def test_an_error_is_one_line_on_stderr():
    done = run("-", text="{")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("score: standard input:1: not JSON")
    assert done.stderr.count("\n") == 1


def test_help_shows_keys_settings_and_commands():
    done = run("--help")
    assert done.returncode == 0
    words = ["solution", "resized", "--detection", "soft_iou", "(default subset)", "module:function", "| python -m"]
    assert [word for word in words if word not in done.stdout] == []


def test_the_table_counts_all_reasons_of_a_row_the_most_frequent_first():
    row = {"kind": "judge", "task": "math", "solution": "yes", "completion": "x"}
    parsed = [parse_completion_line(json.dumps(row), f"f:{n}", n) for n in (1, 2, 3)]
    parts = {"accuracy": ["not_equal", "bad_json", None], "format": ["bad_layout", "bad_layout", None]}
    reasons = {name: np.array([[reason] for reason in values], object) for name, values in parts.items()}
    zeros = {name: np.zeros((3, 1)) for name in parts}
    table = score_table(parsed, Scores(np.zeros((3, 1)), zeros, reasons)).splitlines()
    assert table[-1] == "judge   math             2   bad_layout 2, bad_json 1, not_equal 1"
