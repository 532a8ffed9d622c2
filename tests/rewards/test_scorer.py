import dataclasses
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from currreft_jax.config import (
    BoxReading,
    Kind,
    Length,
    Maths,
    OnRewardError,
    Overlong,
    PartialCredit,
    Repetition,
    Rewards,
    Task,
    validate_rewards,
)
from currreft_jax.rewards import (
    RULES,
    RewardError,
    RowError,
    check_rows,
    maths_pool,
    register,
    registry,
    score_completions,
)
from currreft_jax.rewards.failures import FailureCounts
from currreft_jax.rewards.penalties import length_penalty, overlong_penalty, repetition_penalty
from currreft_jax.structs import Completion, Frame, Reason, RewardFailure, Row, Scores, Verdict
from tests.rewards.helpers import make_row, well_formed

ROOT = Path(__file__).parents[2]
YES = make_row("judge", "detection", "yes", name="q1")
LETTER = make_row("choice", "math", "B", 4, name="q2")


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


def only_reward(name: str) -> Rewards:
    return Rewards(weights={name: 1.0})


def score_user(name: str, row: Row = YES, text: str = well_formed("yes")):
    return score_completions([row], [[Completion(text)]], only_reward(name))


def test_all_rows_but_conversations_and_open_ones_of_another_task_have_a_rule():
    all_kinds = {(kind, task) for kind in Kind for task in Task if kind is not Kind.CHAT}
    assert RULES.keys() == all_kinds - {(Kind.OPEN, Task.OTHER)}


def test_totals_rewards_and_reasons_of_two_groups():
    completions = [
        [Completion(well_formed("yes")), Completion("<answer>yes</answer>"), Completion("yes")],
        [
            Completion(well_formed("C")),
            Completion(well_formed("B"), finished=False),
            Completion(well_formed("it is B")),
        ],
    ]
    scores = score_completions([YES, LETTER], completions)
    assert scores.total.tolist() == [[2, 1, 0], [1, 0, 0]]
    assert scores.parts["accuracy"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert scores.parts["format"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert scores.reasons["accuracy"].tolist() == [
        [None, None, Reason.NO_ANSWER_TAG],
        [Reason.NOT_EQUAL, Reason.TRUNCATED, Reason.NOT_LETTERS],
    ]
    assert scores.reasons["format"].tolist() == [
        [None, Reason.BAD_LAYOUT, Reason.NO_ANSWER_TAG],
        [None, Reason.TRUNCATED, Reason.NOT_LETTERS],
    ]


def test_the_total_is_weighted():
    settings = Rewards(weights={"accuracy": 2.0, "format": 0.5})
    scores = score_completions([LETTER], [[Completion(well_formed("B")), Completion(well_formed("C"))]], settings)
    assert scores.total.tolist() == [[2.5, 0.5]]


def test_a_reward_of_weight_zero_is_not_computed():
    scores = score_completions(
        [YES], [[Completion(well_formed("yes"))]], Rewards(weights={"accuracy": 1.0, "length": 0.0})
    )
    assert scores.parts.keys() == scores.reasons.keys() == {"accuracy"}


@pytest.mark.parametrize(
    ("kind", "task", "solution", "answer", "format_value"),
    [
        ("judge", "detection", "yes", "no", 1),  # official: detection wants boxes in every stage
        ("judge", "detection", "yes", "[0, 0, 10, 10]", 0),
        ("choice", "detection", "B", "C", 1),
        ("choice", "detection", "B", "[0, 0, 10, 10]", 0),
        ("open", "detection", "[0, 0, 10, 10]", "[50.5, 0.5, 60, 10]", 1),  # official: no bare list, no floats
        ("open", "detection", "[0, 0, 10, 10]", "{the box [0, 0, 10, 10] it is}", 0),
        ("open", "classify", "dog", "cat", 1),
        ("open", "classify", "dog", " ", 0),
        ("open", "math", "5", "6", 1),
        ("open", "math", "5", "", 0),
    ],
)
def test_the_format_reward_needs_an_answer_of_the_rows_kind(kind, task, solution, answer, format_value):
    scores = score_completions([make_row(kind, task, solution)], [[Completion(well_formed(answer))]])
    assert scores.parts["format"][0, 0] == format_value


def test_no_rows_give_empty_scores():
    assert score_completions([], []).total.shape == (0, 0)


def test_rows_groups_and_frames_must_match():
    one = [Completion("")]
    with pytest.raises(ValueError, match="2 rows with 1 groups"):
        score_completions([YES, YES], [one])
    with pytest.raises(ValueError, match=r"groups of sizes \[1, 2\]"):
        score_completions([YES, YES], [one, one * 2])
    with pytest.raises(ValueError, match="1 rows with 2 frames"):
        score_completions([YES], [one], frames=[None, None])


def test_conversations_are_scored_by_users_rewards_only(empty_registry):
    row = make_row("chat", "math", "hello", name="c9")
    with pytest.raises(RowError, match=r"row c9: no rule scores chat rows; name a reward of your own \(`train"):
        score_completions([row], [[Completion("")]])
    assert "no rule scores chat" in str(check_rows([row])[0])
    register("kind", low=0, high=1)(lambda row, completion, answer, frame: Verdict(1.0))
    assert score_user("kind", row).total.tolist() == [[1]]


# Users' rewards


def brevity(row, completion, answer, frame):
    """A reward named by import path, in [0, 1]."""
    return Verdict(1.0) if len(completion.text) < 50 else Verdict(0.0, Reason.UNREWARDED)


def test_a_reward_by_import_path():
    settings = Rewards(weights={"accuracy": 1.0, f"{__name__}:brevity": 0.5})
    scores = score_completions(
        [YES], [[Completion(well_formed("yes")), Completion(well_formed("yes") + " " * 99)]], settings
    )
    assert scores.total.tolist() == [[1.5, 1.0]]
    assert scores.reasons[f"{__name__}:brevity"].tolist() == [[None, Reason.UNREWARDED]]


def test_a_registered_reward_sees_row_completion_answer_and_frame(empty_registry):
    seen = []

    @register("spy", low=-2.0, high=2.0)
    def spy(row, completion, answer, frame):
        seen.append((row.id, completion.num_tokens, answer, frame))
        return Verdict(-1.5, Reason.UNREWARDED)

    completions = [[Completion(well_formed(" no "), 7), Completion("no", 1)]]
    scores = score_completions([YES], completions, only_reward("spy"), frames=[Frame(5, 6)])
    assert scores.total.tolist() == [[-1.5, -1.5]]
    assert seen == [("q1", 7, "no", Frame(5, 6)), ("q1", 1, None, Frame(5, 6))]
    score_completions([dataclasses.replace(YES, frame=Frame(8, 9))], completions, only_reward("spy"))
    assert seen[-1] == ("q1", 1, None, Frame(8, 9))  # the row's own, where the model saw no other


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: 1.0, r"returned 1.0; return Verdict\(value, reason\)"),
        (lambda *_: Verdict("1"), "returned Verdict.*plain number"),
        (lambda *_: Verdict(np.ones(2)), "returned Verdict.*plain number"),
        (lambda *_: Verdict(1.5), "value 1.5 is outside its range 0.0 to 1.0"),
        (lambda *_: Verdict(float("nan")), "value nan is outside"),
        (lambda *_: Verdict(0.0), "value 0.0 without a reason; 0 or less needs one"),
        (lambda *_: Verdict(0.0, ""), "value 0.0 with reason ''; a reason is"),
        (lambda *_: Verdict(1.0, "far\noff"), r"reason 'far\\noff'; a reason is"),
        (lambda *_: Verdict(1.0, "far off " * 6), "a reason is a line of 1 to 40"),
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda row: Verdict(1.0), "TypeError"),
    ],
)
def test_an_invalid_verdict_names_reward_row_and_completion(empty_registry, function, message):
    register("mine")(function)
    with pytest.raises(RewardError, match=rf"reward 'mine', row q1, completion '<think>look.*{message}"):
        score_user("mine")


# Tasks with a reward of their own

GAUGE = Row("g1", Task.OTHER, Kind.OPEN, "What does the gauge show?", "70", extra={"tolerance": 5})


def within(row, completion, answer, frame):
    """A reward for gauges: 1 within the row's tolerance; not for other tasks."""
    if row.task is not Task.OTHER:
        return None
    if not answer:
        return Verdict(0.0, Reason.NO_ANSWER_TAG)
    close = abs(Fraction(answer) - Fraction(row.solution)) <= row.extra["tolerance"]  # fails in a file of Python's
    return Verdict(1.0) if close else Verdict(0.0, "off the mark")


WITHIN = f"{__name__}:within"
OWN = Rewards(weights={"accuracy": 1.0, "format": 1.0, WITHIN: 1.0})


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def test_an_open_row_of_another_task_has_layout_and_a_reward_of_ones_own():
    texts = [well_formed("71"), "<answer>66</answer>", well_formed("90"), "70", well_formed(" ")]
    assert check_rows([GAUGE], OWN) == []
    scores = score_completions([GAUGE], [[Completion(text) for text in texts]], OWN)
    assert scores.total.tolist() == [[2, 1, 1, 0, 0]]
    assert np.isnan(scores.parts["accuracy"]).all() and not any(scores.reasons["accuracy"][0])
    assert scores.parts["format"].tolist() == [[1, 0, 1, 0, 0]]
    assert scores.reasons["format"].tolist() == [[None, "bad_layout", None, "no_answer_tag", "empty_answer"]]
    assert scores.reasons[WITHIN].tolist() == [[None, None, "off the mark", "no_answer_tag", "no_answer_tag"]]
    with pytest.raises(RowError, match=r"no rule scores open rows of task other; name a reward of your own \(`train"):
        score_completions([GAUGE], [[Completion("70")]])


def test_rows_with_a_rule_and_rows_with_a_reward_of_ones_own_are_scored_together():
    rows, completions = [YES, GAUGE], [[Completion(well_formed("yes"))], [Completion(well_formed("70"))]]
    scores = score_completions(rows, completions, OWN)
    assert scores.total.tolist() == [[2], [2]]
    np.testing.assert_array_equal(scores.parts["accuracy"], [[1], [np.nan]])
    np.testing.assert_array_equal(scores.parts[WITHIN], [[np.nan], [1]])
    settings = Rewards(weights={"format": 1.0, WITHIN: 1.0})
    place = rf"test_scorer\.py:{line_of('def within(')}: row q1: "
    with pytest.raises(
        RewardError, match=rf"{place}{WITHIN} returned None, and no rule scores its answer.*; return Ver"
    ):
        score_completions(rows, completions, settings)


def test_golds_are_read_only_for_the_accuracy():
    polygon = make_row("open", "detection", "[[10, 10], [50, 10], [30, 40]]")
    settings = Rewards(weights={"format": 1.0, f"{__name__}:brevity": 1.0})
    assert check_rows([polygon], settings) == []
    completions = [[Completion(well_formed("[0, 0, 9, 9]")), Completion(well_formed("left"))]]
    assert score_completions([polygon], completions, settings).parts["format"].tolist() == [[1, 0]]
    assert len(check_rows([polygon])) == 1


def test_a_failure_names_the_line_of_the_reward_that_failed(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(RewardError) as raised:
        score_completions([GAUGE], [[Completion(well_formed("about 71 bar"))]], OWN)
    line = line_of("close = abs(Fraction(answer)")
    assert str(raised.value).startswith(f"test_scorer.py:{line}: reward '{WITHIN}', row g1, completion '<think>")
    assert str(raised.value).endswith("ValueError: Invalid literal for Fraction: 'about 71 bar'")


@pytest.mark.parametrize("wrap", [lambda function: function, partial])
def test_an_invalid_verdict_names_the_line_where_its_reward_begins(empty_registry, wrap, monkeypatch, tmp_path):
    def half(row, completion, answer, frame):
        return 0.5

    monkeypatch.chdir(tmp_path)
    register("mine")(wrap(half))
    with pytest.raises(
        RewardError, match=rf"^{re.escape(__file__)}:{line_of('def half')}: reward 'mine'.*returned 0.5"
    ):
        score_user("mine")


def test_a_failing_reward_counts_as_zero_where_the_settings_say_so(empty_registry):
    register("penalty", low=-1.0, high=0.0)(lambda *_: 1 / 0)
    weights = {"format": 1.0, WITHIN: 1.0, "penalty": 0.5}
    settings = Rewards(weights=weights, on_error=OnRewardError.ZERO)
    completions = [[Completion(well_formed(answer)) for answer in ("70", "about 71 bar")]]
    scores = score_completions([GAUGE], completions, settings)
    assert scores.total.tolist() == [[1.5, 0.5]]
    assert scores.reasons[WITHIN].tolist() == [[None, Reason.REWARD_FAILED]]
    assert [failure.reward for failure in scores.failures] == ["penalty", WITHIN, "penalty"]
    assert "ZeroDivisionError" in scores.failures[0].message
    with pytest.raises(RewardError):
        score_completions([GAUGE], completions, Rewards(weights=weights))
    settings.weights["overlong"] = 1.0
    with pytest.raises(
        RewardError, match="num_tokens is unknown"
    ):  # not a reward of one's own: a mistake of the caller
        score_completions([GAUGE], completions, settings)


def test_failures_are_summed_up_by_their_most_frequent_place(empty_registry, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    register("mine")(lambda row, completion, *_: Verdict(1.0) if row.kind is Kind.OPEN else None)
    weights = {"format": 1.0, WITHIN: 1.0, "mine": 1.0}
    settings, counts = Rewards(weights=weights, on_error=OnRewardError.ZERO), FailureCounts()
    rows = [dataclasses.replace(GAUGE, extra={}), GAUGE, YES]
    completions = [[Completion(well_formed(answer)) for answer in ("70", "about 71 bar")]] * 2
    counts.add(score_completions(rows[:2], completions, settings))
    place = f"test_scorer.py:{line_of('close = abs(Fraction(answer)')}"
    assert counts.summary() == [
        f"reward {WITHIN!r} failed and counts as 0 for 3 of 4 completions: 3 times at {place}, first with KeyError:"
        " 'tolerance'"
    ]
    settings.weights["accuracy"] = 1.0
    counts.add(score_completions(rows[2:], completions[:1], settings))  # neither applies
    assert " for 3 of 4 completions" in counts.summary()[0] and len(counts.summary()) == 1
    elsewhere = RewardFailure(WITHIN, "other.py:3", "ValueError: no", "")
    counts.add(Scores(np.zeros((1, 1)), {WITHIN: np.zeros((1, 1))}, {}, (elsewhere,)))
    assert " for 4 of 5 completions: 3 times at test_scorer.py:" in counts.summary()[0]


def test_a_taken_name_or_an_empty_range_is_refused(empty_registry):
    register("mine")(brevity)
    for name in ("mine", "accuracy", "length"):
        with pytest.raises(ValueError, match="exists already"):
            register(name)(within)
    with pytest.raises(ValueError, match="low must be less than high"):
        register("other", low=1, high=1)


def test_a_cell_of_a_notebook_that_runs_again_registers_its_reward_anew(empty_registry):
    for value in (0.25, 0.75):
        cell = f"def mine(row, completion, answer, frame):\n    return Verdict({value})"
        names = {"__name__": "__main__", "Verdict": Verdict}
        exec(cell, names)
        register("mine")(names["mine"])
    assert score_user("mine").total.tolist() == [[0.75]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "names 'acuracy'; write package.module:function, or one of accuracy, format"),
        ("no_such_module:f", "No module named 'no_such_module'; start in the folder that holds no_such_module, or add"),
        ("examples.zzz:f", "No module named 'examples.zzz'$"),
        ("examples.gauge.rewrd:f", "No module named 'examples.gauge.rewrd'; nearest: examples.gauge.reward:f"),
        ("./examples/gauge/reward.py:f", "gauge/reward.py is a path: write examples.gauge.reward:f$"),
        (f"{ROOT}/examples/gauge/reward.py:f", "gauge/reward.py is a path: write examples.gauge.reward:f$"),
        ("/mine/clock/reward.py:f", "reward.py is a path: add /mine/clock to PYTHONPATH and write reward:f$"),
        ("../clock/reward.py:f", rf"is a path: add {ROOT.parent}/clock to PYTHONPATH and write reward:f$"),
        (f"{__name__}:f", "defines no 'f'"),
        (f"{__name__}:brevty", "defines no 'brevty'; nearest: brevity"),
    ],
)
def test_an_unknown_reward_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        score_user(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(row)\n    return 1", r"broken\.py:1: expected ':'$"),
        ("\nhalf = 1 / 0", r"broken\.py:2: ZeroDivisionError: division by zero$"),
        ("import no_such", r"broken\.py:1: ModuleNotFoundError: No module named 'no_such': add the folder"),
        ("from currreft_jax.structs import Verdit", r"broken\.py:1: ImportError: cannot import name 'Verdit'"),
    ],
)
def test_a_mistake_in_the_file_of_a_reward_is_told_with_its_line(code, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    (tmp_path / "broken2.py").touch()  # no name that was meant
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^rewards.weights names 'broken:f', but broken cannot be imported: .*{message}"
    ):
        score_user("broken:f")


# Penalties, worked by hand


@pytest.mark.parametrize(("tokens", "value"), [(0, 0), (50, -0.25), (200, -1), (999, -1)])
def test_length_penalty(tokens, value):
    assert length_penalty(tokens, Length(200)) == Verdict(value, Reason.TOO_LONG if value else None)


@pytest.mark.parametrize(("tokens", "value"), [(0, 0), (60, 0), (70, -0.25), (90, -0.75), (100, -1), (999, -1)])
def test_overlong_penalty(tokens, value):
    assert overlong_penalty(tokens, Overlong(100, 40)) == Verdict(value, Reason.TOO_LONG if value else None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("a b", 0),
        ("a b c d", 0),
        ("a a a a", -2 / 3),  # three pairs, one of them distinct
        ("A b a B", -1 / 3),  # ab, ba, ab
        ("a b\nc a b", -1 / 4),  # ab, bc, ca, ab
    ],
)
def test_repetition_penalty(text, value):
    verdict = repetition_penalty(Completion(text), Repetition(2))
    assert verdict == Verdict(pytest.approx(value), Reason.REPEATS if value else None)


def test_penalties_count_in_the_total():
    settings = Rewards(
        weights={"accuracy": 1.0, "length": 0.5, "repetition": 1.0, "overlong": 1.0},
        length=Length(100),
        overlong=Overlong(100, 50),
    )
    scores = score_completions([YES], [[Completion(well_formed("yes"), 75)]], settings)
    assert scores.total[0, 0] == 1 - 0.5 * 0.75 - 0.5


def test_the_length_penalties_need_num_tokens():
    with pytest.raises(RewardError, match=r"reward 'overlong', row q1.*num_tokens is unknown; give it"):
        score_completions([YES], [[Completion(well_formed("yes"))]], Rewards(weights={"overlong": 1.0}))


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Rewards(weights={}), "rewards.weights is .*at least one weight"),
        (Rewards(weights={"accuracy": 0.0}), "at least one weight"),
        (Rewards(weights={"accuracy": float("nan")}), "finite"),
        (Rewards(partial_value=1.0), r"rewards.partial_value is 1.0; it takes a number in \[0, 1\)"),
        (Rewards(tau=0.0), "rewards.tau is 0.0"),
        (Rewards(accept_iou=0.4), "rewards.accept_iou is 0.4"),
        (Rewards(maths=Maths(workers=-1)), "rewards.maths.workers is -1; it takes 0, for the machine's cores, or more"),
        (Rewards(maths=Maths(cpu_seconds=0)), "maths.cpu_seconds"),
        (Rewards(maths=Maths(wall_seconds=1.0)), "more than maths.cpu_seconds"),
        (Rewards(maths=Maths(memory_mb=10)), "maths.memory_mb"),
        (Rewards(maths=Maths(max_characters=10_000)), "maths.max_characters"),
        (Rewards(maths=Maths(max_nesting=0)), "maths.max_nesting"),
        (Rewards(length=Length(0)), "length.max_tokens"),
        (Rewards(repetition=Repetition(0)), "repetition.ngram"),
        (Rewards(overlong=Overlong(10, 20)), r"overlong.buffer_tokens is 20; it takes 1 to overlong.max_tokens \(10\)"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        validate_rewards(settings)
    with pytest.raises(ValueError, match=message):
        score_completions([YES], [[Completion("")]], settings)


def test_the_defaults_are_the_papers():
    defaults = Rewards()
    validate_rewards(defaults)
    assert {name: weight for name, weight in defaults.weights.items() if weight} == {"accuracy": 1, "format": 1}
    assert (defaults.partial_credit, defaults.partial_value) == (PartialCredit.SUBSET, 0.2)
    assert defaults.box_reading is BoxReading.READABLE


def test_settings_can_be_overridden_by_flags():
    code = (
        "from absl import flags; from ml_collections import config_flags; from currreft_jax.config import Rewards\n"
        "settings = config_flags.DEFINE_config_dataclass('rewards', Rewards()); import sys; flags.FLAGS(sys.argv)\n"
        "value = settings.value; print(value.tau, value.detection.value, value.weights['length'], value.maths.workers)"
    )
    changed = ["tau=0.7", "detection=f1", "weights.length=0.5", "maths.workers=3"]
    command = [sys.executable, "-c", code, *(f"--rewards.{setting}" for setting in changed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.7", "f1", "0.5", "3"]


def test_the_rewards_and_their_program_load_no_jax():
    code = (
        "import sys, currreft_jax.rewards, currreft_jax.score\n"
        "print([name for name in ('jax', 'flax', 'torch', 'math_verify', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_maths_workers_load_no_jax():
    code = (
        f"import sys, runpy; runpy.run_path({str(maths_pool._SCRIPT)!r})\n"
        "print([name for name in ('jax', 'flax', 'torch', 'numpy', 'currreft_jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
