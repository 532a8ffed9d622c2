"""The report without a browser: its data, the selection of rollouts, its safety and its errors."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from currreft_jax.config import Config, Kind, Method, Optimizer, Rejection, Source, Stage, Task
from currreft_jax.evaluation.measurement import LossMeasurement, Measurement
from currreft_jax.evaluation.statistics import Interval
from currreft_jax.report import __main__ as program
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.page import MAX_BYTES, render_page
from currreft_jax.report.rollouts import bisection_order, rollouts_json
from currreft_jax.report.runs import forgetting_matrix, metric_columns, read_run, run_record
from currreft_jax.runtime.workdir import read_config, write_config
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.forgetting_gate import GateDecision, RewardChange
from tests import tiny
from tests.report.workdirs import (
    completion_record,
    detection_row,
    metric_lines,
    rollout_row,
    write_image,
    write_lines,
    write_run,
)

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u2028 &amp; {{data}}"


def rollouts_of(workdir, max_bytes=MAX_BYTES):
    text, counts = rollouts_json(read_run(workdir), max_bytes)
    return json.loads(text), counts


# ------------------------------------------------------------------------------------------------------------- curves


def test_a_point_covers_several_steps_where_there_are_too_many():
    found = metric_columns(
        metric_lines(7, x=lambda s: float(s), **{"a/max": lambda s: -s, "a/min_length": lambda s: s}), max_points=3
    )
    assert found["steps_per_point"] == 3 and found["steps"] == [3, 6, 7]
    assert found["metrics"]["x"] == [2, 5, 7]
    assert found["metrics"]["a/max"] == [-1, -4, -7]
    assert found["metrics"]["a/min_length"] == [1, 4, 7]


def test_absent_and_infinite_values_are_gaps_and_absent_parse_reasons_are_0():
    found = metric_columns([{"step": 1, "x": 1.0}, {"step": 2, "x": float("inf"), "parse/no_answer_tag": 0.5}])
    assert found["metrics"] == {"x": [1, None], "parse/no_answer_tag": [0, 0.5]}


def test_the_matrix_marks_regressions():
    measurements = [
        Measurement(stage, 5, name, 100, reward, 0.01, 0.5, 0.9, 40)
        for stage, rewards in (("", (1, 1)), ("one", (1.5, 1)), ("two", (1.2, 1.4)))
        for name, reward in zip(("one", "two"), rewards, strict=True)
    ]
    found = forgetting_matrix(measurements)
    assert found["times"] == [("", 5), ("one", 5), ("two", 5)] and found["names"] == ["one", "two"]
    assert [[cell["reward"] for cell in line] for line in found["cells"]] == [[1, 1], [1.5, 1], [1.2, 1.4]]
    assert [[cell["regressed_from"] for cell in line] for line in found["cells"]] == [
        [None, None],
        [None, None],
        [1.5, None],
    ]


def test_stages_are_in_the_order_of_the_settings_without_those_to_come(tmp_path):
    write_run(tmp_path, stages=("zebra", "ape", "bear"))
    (tmp_path / "bear" / "metrics.jsonl").unlink()
    (tmp_path / "ape" / "metrics.jsonl").write_text('{"step": 1, "stage": "ape", "loss": 0.5}\n{"step": 2, "lo')
    found = run_record(read_run(tmp_path))
    assert [(stage["name"], stage["planned_steps"], stage["steps"][-1]) for stage in found["stages"]] == [
        ("zebra", 20, 20),
        ("ape", 20, 1),
    ]


def test_checkpoints_have_their_sizes(tmp_path):
    write_run(tmp_path)
    for step in (5, 20):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "params" / "x").write_bytes(b"x" * step)
    (tmp_path / "checkpoints" / "30.partial").mkdir()
    assert run_record(read_run(tmp_path))["stages"][0]["checkpoints"] == [(5, 5), (20, 20)]


def test_every_metric_that_a_chart_names_has_a_line_in_docs_metrics():
    script = (ROOT / "currreft_jax" / "report" / "run.js").read_text("utf-8")
    panels = script.split("const PANELS = [")[1].split("\n];")[0]
    lists = re.findall(r'^ *\["[^"]+", "[^"]*", (\[.*?\])\],$', panels, re.M | re.S)
    entries = [entry for found in lists for entry in json.loads(found)]
    keys = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    keys += [f"held_out/STAGE{domain}/{measure}" for domain in ("", "/out_of_domain") for measure in ("pass", "reward")]
    documented = re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8"))
    assert len(keys) > 40 and not set(keys) - set(documented)


# ----------------------------------------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize(
    ("count", "order"), [(0, []), (1, [0]), (2, [0, 1]), (5, [0, 4, 2, 1, 3]), (8, [0, 7, 3, 1, 5, 2, 4, 6])]
)
def test_groups_are_selected_from_the_ends_and_then_by_bisection(count, order):
    assert list(bisection_order(count)) == order


def test_a_page_keeps_its_size_limit_and_the_ends_of_every_stage(tmp_path):
    write_run(tmp_path, stages=("one", "two"))
    for stage in ("one", "two"):
        for step in (1, 6, 11, 20):
            rows = [rollout_row(number, id=f"{stage}-{step}-{number}") for number in range(10)]
            write_lines(tmp_path / stage / "rollouts" / f"{step}.jsonl", rows)
    small, counts = render_page(read_run(tmp_path), max_bytes=110_000)
    assert len(small.encode()) < 110_000
    assert counts["found"] == 80 and 8 < counts["shown"] < 80
    assert (small, counts) == render_page(read_run(tmp_path), max_bytes=110_000)
    for name in ("one-1-0", "one-20-9", "two-1-0", "two-20-9"):
        assert f'"id":"{name}"' in small
    _, counts = render_page(read_run(tmp_path))
    assert counts["shown"] == counts["found"]


def test_boxes_are_relative_to_the_image_in_every_frame(tmp_path):
    write_run(tmp_path)
    image = write_image(tmp_path / "a.png")
    question = {"task": "detection", "kind": "choice", "problem": "where?", "options": ["{box:0}", "{box:1}"]}
    question |= {"boxes": [[0, 0, 42, 42], [42, 42, 84, 84]], "solution": "B"}
    rows = [detection_row(1, image, [21, 42, 63, 84], [42, 84, 126, 168]), rollout_row(2, image, **question)]
    write_lines(tmp_path / "rollouts" / "1.jsonl", rows)
    found, _ = rollouts_of(tmp_path)
    assert found["groups"][0]["gold_boxes"] == found["groups"][0]["completions"][0]["boxes"] == [[0.25, 0.5, 0.75, 1]]
    assert found["groups"][1]["question_boxes"] == [
        {"label": "A", "correct": False, "box": [0, 0, 0.5, 0.5]},
        {"label": "B", "correct": True, "box": [0.5, 0.5, 1, 1]},
    ]
    assert found["groups"][1]["gold_boxes"] == [] and "text" not in found["groups"][0]["completions"][0]


def test_boxes_are_shares_of_the_width_and_of_the_height(tmp_path):
    write_run(tmp_path)
    tiny.picture(100, 200).save(tmp_path / "a.png")
    answer = completion_record("<think> a </think> <answer> [25, 25, 50, 50] </answer>")
    frames = {"frame": [100, 200], "resized": [50, 100]}
    question = {"task": "detection", "kind": "open", "solution": "[50, 50, 100, 100]", "completions": [answer]}
    write_lines(tmp_path / "rollouts" / "1.jsonl", [rollout_row(1, tmp_path / "a.png", **frames, **question)])
    (group,) = rollouts_of(tmp_path)[0]["groups"]
    assert group["gold_boxes"] == group["completions"][0]["boxes"] == [[0.5, 0.25, 1.0, 0.5]]


def test_damaged_answers_show_their_boxes_and_rows_with_nothing_to_find_none(tmp_path):
    write_run(tmp_path)
    image = write_image(tmp_path / "a.png")
    answer = completion_record('<think> a </think> <answer> ["{"bbox_2d": [21, 42, 63, 84]}] </answer>')
    question = {"task": "detection", "kind": "open", "solution": "[]", "frame": [84, 84], "completions": [answer]}
    write_lines(tmp_path / "rollouts" / "1.jsonl", [rollout_row(1, image, **question)])
    (group,) = rollouts_of(tmp_path)[0]["groups"]
    assert group["gold_boxes"] == []
    assert group["completions"][0]["boxes"] == [[0.25, 0.5, 0.75, 1]]


def test_an_image_is_embedded_once_and_an_unreadable_one_is_counted(tmp_path):
    write_run(tmp_path)
    first, copy = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")
    damaged = tmp_path / "c.png"
    damaged.write_bytes(first.read_bytes()[:40])
    images = [first, copy, first, damaged, tmp_path / "none.png", tmp_path]
    write_lines(tmp_path / "rollouts" / "1.jsonl", [rollout_row(k, path) for k, path in enumerate(images)])
    found, counts = rollouts_of(tmp_path)
    assert [group["images"] for group in found["groups"]] == [[0], [0], [0], [None], [None], [None]]
    assert len(found["images"]) == 1 and found["images"][0]["uri"].startswith("data:image/png;base64,")
    assert counts["missing"] == 3 and found["groups"][4]["missing"] == [str(tmp_path / "none.png")]


def test_large_images_are_downscaled(tmp_path):
    write_run(tmp_path)
    write_lines(tmp_path / "rollouts" / "1.jsonl", [rollout_row(1, write_image(tmp_path / "large.png", 2000))])
    (image,) = rollouts_of(tmp_path)[0]["images"]
    assert (image["width"], image["uri"][:22]) == (2000, "data:image/jpeg;base64")
    assert len(image["uri"]) < 10_000


def test_rows_are_numbered_across_hosts_and_an_incomplete_line_is_skipped(tmp_path):
    write_run(tmp_path)
    write_lines(tmp_path / "rollouts" / "11-0.jsonl", [rollout_row(1), rollout_row(2)])
    write_lines(tmp_path / "rollouts" / "11-1.jsonl", [rollout_row(3)])
    write_lines(tmp_path / "rollouts" / "2.jsonl", [rollout_row(4)])
    with (tmp_path / "rollouts" / "2.jsonl").open("a") as file:
        file.write('{"id": "ha')
    (tmp_path / "rollouts" / "notes.jsonl").write_text("not ours\n")
    found, _ = rollouts_of(tmp_path)
    assert [(group["step"], group["row"], group["id"]) for group in found["groups"]] == [
        (2, 1, "row-4"),
        (11, 1, "row-1"),
        (11, 2, "row-2"),
        (11, 3, "row-3"),
    ]


# ------------------------------------------------------------------------------------------------------------- safety


def test_embedded_json_ends_no_element():
    text = html_safe_json([HOSTILE])
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == [HOSTILE]
    with pytest.raises(ValueError, match="not JSON compliant"):
        html_safe_json(float("nan"))


def test_a_page_allows_only_its_own_script_and_no_requests(tmp_path):
    workdir = write_run(tmp_path / "<b>run", name=HOSTILE)
    answer = completion_record(HOSTILE, reasons={"accuracy": HOSTILE})
    hostile = rollout_row(1, id=HOSTILE, prompt=HOSTILE, solution=HOSTILE, completions=[answer])
    write_lines(workdir / "rollouts" / "1.jsonl", [hostile])
    text, _ = render_page(read_run(workdir))
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="data"', ""]
    group = json.loads(scripts[0][1])["rollouts"]["groups"][0]
    assert group["id"] == group["completions"][0]["reasons"]["accuracy"] == HOSTILE
    assert "".join(group["completions"][0]["tokens"]) == HOSTILE
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    for kind, content in (("script", scripts[1][1]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert "<title>&lt;b&gt;run</title>" in text
    script = scripts[1][1].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write|eval\(", script)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": "2"}\n', r'metrics\.jsonl:2: no line of metrics \("step" is no whole'),
        (
            "metrics.jsonl",
            '{"step": 1, "loss": "low"}\n',
            r'metrics\.jsonl:1: no line of metrics \("loss" is no number',
        ),
        ("metrics.jsonl", "no JSON\n", r"metrics\.jsonl:1: no line of metrics"),
        ("config.json", '{"stages": []}', r"config\.json: no settings of a run with such a stage"),
        ("config.json", "[", r"config\.json:1: not JSON"),
        ("curriculum.json", "{}", r"curriculum\.json is damaged"),
        ("rollouts/1.jsonl", "\nno JSON\n", r"1\.jsonl:2: not JSON"),
        ("rollouts/1.jsonl", json.dumps(rollout_row(kind="odd")) + "\n", r'1\.jsonl:1: "kind" is "odd"'),
        (
            "rollouts/1.jsonl",
            json.dumps(rollout_row(completions=[3])) + "\n",
            r'1\.jsonl:1: completion 1: "text" is missing',
        ),
        (
            "rollouts/1.jsonl",
            json.dumps(rollout_row(completions=[completion_record(), completion_record(logprobs=[-1])])) + "\n",
            r'1\.jsonl:1: completion 2: "logprobs" is \[-1\]; it takes one number per token',
        ),
        (
            "rollouts/1.jsonl",
            json.dumps(rollout_row(completions=[completion_record() | {"reward": "much"}])) + "\n",
            r'completion 1: "reward" is "much"; it takes a number',
        ),
        (
            "rollouts/1.jsonl",
            json.dumps(rollout_row(kind="open", task="detection", image="a.png", solution="there")) + "\n",
            r"1\.jsonl:1: solution 'there' holds no boxes",
        ),
    ],
)
def test_damage_is_reported_with_file_and_line(tmp_path, capsys, name, text, message):
    write_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        program.main([str(tmp_path)])
    assert not list(tmp_path.glob("report.html*"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder, message in ((tmp_path, "holds no run"), (tmp_path / "nowhere", "there is no folder .*/nowhere$")):
        with pytest.raises(SystemExit, match=message):
            program.main([str(folder)])


# ------------------------------------------------------------------------------------------------------------ program


def test_the_program_writes_a_page_and_prints_its_path(tmp_path, capsys):
    workdir = write_run(tmp_path / "a", stages=("one", "two"))
    other = write_run(tmp_path / "b", steps=5)
    matrix = ForgettingMatrix(workdir / "curriculum.json", writes=True)
    matrix.add([Measurement("", 0, "one", 10, 1.0, 0.1, 0.5, 0.5, 5)])
    matrix.add_loss(LossMeasurement("two", 0, 7, 1.25))
    matrix.decide(decision := GateDecision("two", 5, 0, 0.1, (RewardChange("one", -0.5, Interval(-0.7, -0.3), True),)))
    write_lines(workdir / "one" / "rollouts" / "1.jsonl", [rollout_row(1)])
    program.main([str(workdir), "--compare", str(other), "--out", str(tmp_path / "both.html")])
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'both.html'}\n"
    assert "1 of 1 group of completions, 0.1 MB" in shown.err
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "both.html").read_text(), re.S)
    assert [(run["name"], len(run["stages"])) for run in json.loads(data)["runs"]] == [("a", 2), ("b", 1)]
    assert str(decision).endswith("one -0.500 (-0.700 to -0.300), fallen: the model is that of its start")
    notes = ["loss of the held-out rows of two: 1.2500 at step 0", str(decision)]
    assert [run["matrix"]["notes"] for run in json.loads(data)["runs"]] == [notes, []]
    program.main([str(workdir)])
    assert capsys.readouterr().out == f"{workdir / 'report.html'}\n"


def test_a_run_without_completions_or_steps_has_a_page(tmp_path, capsys):
    write_run(tmp_path, method=Method.SFT)
    (tmp_path / "metrics.jsonl").write_text("")
    program.main([str(tmp_path)])
    assert "0 of 0 groups" in capsys.readouterr().err


def test_replay_prints_the_command_of_a_completion(tmp_path, capsys):
    workdir = write_run(tmp_path / "a run", stages=("one", "two"))
    write_lines(workdir / "two" / "rollouts" / "1-0.jsonl", [rollout_row(1), rollout_row(2)])
    write_lines(workdir / "two" / "rollouts" / "1-1.jsonl", [rollout_row(3), rollout_row(4)])
    program.main([str(workdir), "--replay", "two:1:4:2"])
    path = workdir / "two" / "rollouts" / "1-1.jsonl"
    assert capsys.readouterr().out == f"python -m currreft_jax.generate --replay='{path}:2:'2\n"
    for location, message in (
        ("two:1:4", "takes STAGE:STEP:ROW:G"),
        ("three:1:4:2", "no stage 'three'; it has one, two"),
        ("two:2:4:2", r"no completions of step 2 were written, only of steps \[1\]"),
        ("two:1:5:2", "step 1 has rows 1 to 4, not 5"),
    ):
        with pytest.raises(SystemExit, match=message):
            program.main([str(workdir), "--replay", location])


def test_settings_round_trip_through_the_workdir(tmp_path):
    stage = Stage("one", [Source("a.jsonl", kind=Kind.OPEN)], kinds=(Kind.OPEN,), tasks=(Task.MATH,))
    two = Stage("two", held_out=[Source("b.jsonl")], method=Method.SFT, optimizer=Optimizer(), rejection=Rejection())
    config = Config(stages=[stage, two])
    config.rewards.weights["brief"] = 0.5
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    (tmp_path / "config.json").write_text('{"stages": [{"nme": "one"}]}')
    with pytest.raises(ValueError, match=r"config\.json holds no settings of this version .*nme"):
        read_config(tmp_path)
