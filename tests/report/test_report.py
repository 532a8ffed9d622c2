"""The report without a browser: what is gathered, what is chosen, what is safe, what is refused."""

import base64
import hashlib
import json
import re

import pytest

from currreft_jax.config import Config, Kind, Method, Source, Stage, Task
from currreft_jax.curriculum import Matrix, Measurement
from currreft_jax.report import __main__ as program
from currreft_jax.report.book import book, halved
from currreft_jax.report.embed import embedded
from currreft_jax.report.page import LIMIT, page
from currreft_jax.report.runs import curves, matrix, read_run, told
from currreft_jax.workdir import read_config, write_config
from tests import tiny
from tests.report.written import boxed, completion, lines, picture, row, write_lines, write_run

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u2028 &amp; {{data}}"


def book_of(workdir, limit=LIMIT):
    text, counts = book(read_run(workdir), limit)
    return json.loads(text), counts


# ------------------------------------------------------------------------------------------------------------- curves


def test_a_point_stands_for_several_steps_where_there_are_too_many():
    found = curves(lines(7, x=lambda s: float(s), **{"a/max": lambda s: -s, "a/min_length": lambda s: s}), points=3)
    assert found["every"] == 3 and found["steps"] == [3, 6, 7]
    assert found["metrics"]["x"] == [2, 5, 7]
    assert found["metrics"]["a/max"] == [-1, -4, -7]
    assert found["metrics"]["a/min_length"] == [1, 4, 7]


def test_what_is_absent_or_infinite_leaves_a_gap_and_a_reason_that_nobody_gave_is_0():
    found = curves([{"step": 1, "x": 1.0}, {"step": 2, "x": float("inf"), "parse/no_answer_tag": 0.5}])
    assert found["metrics"] == {"x": [1, None], "parse/no_answer_tag": [0, 0.5]}


def test_the_matrix_says_what_fell():
    measured = [
        Measurement(stage, 5, name, 100, reward, 0.01, 0.5, 0.9, 40)
        for stage, rewards in (("", (1, 1)), ("one", (1.5, 1)), ("two", (1.2, 1.4)))
        for name, reward in zip(("one", "two"), rewards, strict=True)
    ]
    found = matrix(measured)
    assert found["times"] == [("", 5), ("one", 5), ("two", 5)] and found["names"] == ["one", "two"]
    assert [[cell["reward"] for cell in line] for line in found["cells"]] == [[1, 1], [1.5, 1], [1.2, 1.4]]
    assert [[cell["fallen"] for cell in line] for line in found["cells"]] == [[None, None], [None, None], [1.5, None]]


def test_stages_come_in_the_order_of_the_settings_and_those_to_come_are_left_out(tmp_path):
    write_run(tmp_path, stages=("zebra", "ape", "bear"))
    (tmp_path / "bear" / "metrics.jsonl").unlink()
    (tmp_path / "ape" / "metrics.jsonl").write_text('{"step": 1, "stage": "ape", "loss": 0.5}\n{"step": 2, "lo')
    found = told(read_run(tmp_path))
    assert [(stage["name"], stage["planned"], stage["steps"][-1]) for stage in found["stages"]] == [
        ("zebra", 20, 20),
        ("ape", 20, 1),
    ]


def test_checkpoints_have_their_sizes(tmp_path):
    write_run(tmp_path)
    for step in (5, 20):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "params" / "x").write_bytes(b"x" * step)
    (tmp_path / "checkpoints" / "30.partial").mkdir()
    assert told(read_run(tmp_path))["stages"][0]["checkpoints"] == [(5, 5), (20, 20)]


# --------------------------------------------------------------------------------------------------------------- book


@pytest.mark.parametrize(
    ("count", "order"), [(0, []), (1, [0]), (2, [0, 1]), (5, [0, 4, 2, 1, 3]), (8, [0, 7, 3, 1, 5, 2, 4, 6])]
)
def test_groups_are_taken_from_the_ends_and_then_halfway(count, order):
    assert list(halved(count)) == order


def test_a_page_keeps_its_limit_and_the_ends_of_every_stage(tmp_path):
    write_run(tmp_path, stages=("one", "two"))
    for stage in ("one", "two"):
        for step in (1, 6, 11, 20):
            rows = [row(number, id=f"{stage}-{step}-{number}") for number in range(10)]
            write_lines(tmp_path / stage / "rollouts" / f"{step}.jsonl", rows)
    small, counts = page(read_run(tmp_path), limit=90_000)
    assert len(small.encode()) < 90_000
    assert counts["found"] == 80 and 8 < counts["shown"] < 80
    assert (small, counts) == page(read_run(tmp_path), limit=90_000)
    for name in ("one-1-0", "one-20-9", "two-1-0", "two-20-9"):
        assert f'"id":"{name}"' in small
    _, counts = page(read_run(tmp_path))
    assert counts["shown"] == counts["found"]


def test_boxes_are_shares_of_the_image_whatever_frame_they_were_written_in(tmp_path):
    write_run(tmp_path)
    image = picture(tmp_path / "a.png")
    asked = {"task": "detection", "kind": "choice", "problem": "where?", "options": ["{box:0}", "{box:1}"]}
    asked |= {"boxes": [[0, 0, 42, 42], [42, 42, 84, 84]], "solution": "B"}
    rows = [boxed(1, image, [21, 42, 63, 84], [42, 84, 126, 168]), row(2, image, **asked)]
    write_lines(tmp_path / "rollouts" / "1.jsonl", rows)
    found, _ = book_of(tmp_path)
    assert found["groups"][0]["gold"] == found["groups"][0]["said"][0]["boxes"] == [[0.25, 0.5, 0.75, 1]]
    assert found["groups"][1]["asked"] == [
        {"label": "A", "right": False, "box": [0, 0, 0.5, 0.5]},
        {"label": "B", "right": True, "box": [0.5, 0.5, 1, 1]},
    ]
    assert found["groups"][1]["gold"] == [] and "text" not in found["groups"][0]["said"][0]


def test_boxes_are_shares_of_the_width_and_of_the_height(tmp_path):
    write_run(tmp_path)
    tiny.picture(100, 200).save(tmp_path / "a.png")
    answer = completion("<think> a </think> <answer> [25, 25, 50, 50] </answer>")
    frames = {"frame": [100, 200], "resized": [50, 100]}
    asked = {"task": "detection", "kind": "open", "solution": "[50, 50, 100, 100]", "completions": [answer]}
    write_lines(tmp_path / "rollouts" / "1.jsonl", [row(1, tmp_path / "a.png", **frames, **asked)])
    (group,) = book_of(tmp_path)[0]["groups"]
    assert group["gold"] == group["said"][0]["boxes"] == [[0.5, 0.25, 1.0, 0.5]]


def test_an_image_is_embedded_once_and_one_that_cannot_be_read_is_counted(tmp_path):
    write_run(tmp_path)
    first, copy = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    damaged = tmp_path / "c.png"
    damaged.write_bytes(first.read_bytes()[:40])
    images = [first, copy, first, damaged, tmp_path / "none.png", tmp_path]
    write_lines(tmp_path / "rollouts" / "1.jsonl", [row(k, path) for k, path in enumerate(images)])
    found, counts = book_of(tmp_path)
    assert [it["images"] for it in found["groups"]] == [[0], [0], [0], [None], [None], [None]]
    assert len(found["images"]) == 1 and found["images"][0]["uri"].startswith("data:image/png;base64,")
    assert counts["missing"] == 3 and found["groups"][4]["missing"] == [str(tmp_path / "none.png")]


def test_large_images_are_shrunk(tmp_path):
    write_run(tmp_path)
    write_lines(tmp_path / "rollouts" / "1.jsonl", [row(1, picture(tmp_path / "large.png", 2000))])
    (image,) = book_of(tmp_path)[0]["images"]
    assert (image["width"], image["uri"][:22]) == (2000, "data:image/jpeg;base64")
    assert len(image["uri"]) < 10_000


def test_rows_of_several_hosts_are_numbered_through_and_a_line_that_is_being_written_waits(tmp_path):
    write_run(tmp_path)
    write_lines(tmp_path / "rollouts" / "11-0.jsonl", [row(1), row(2)])
    write_lines(tmp_path / "rollouts" / "11-1.jsonl", [row(3)])
    write_lines(tmp_path / "rollouts" / "2.jsonl", [row(4)])
    with (tmp_path / "rollouts" / "2.jsonl").open("a") as file:
        file.write('{"id": "ha')
    (tmp_path / "rollouts" / "notes.jsonl").write_text("not ours\n")
    found, _ = book_of(tmp_path)
    assert [(it["step"], it["row"], it["id"]) for it in found["groups"]] == [
        (2, 1, "row-4"),
        (11, 1, "row-1"),
        (11, 2, "row-2"),
        (11, 3, "row-3"),
    ]


# ------------------------------------------------------------------------------------------------------------- safety


def test_embedded_text_is_json_that_ends_no_element():
    text = embedded([HOSTILE])
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == [HOSTILE]
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded(float("nan"))


def test_a_page_runs_its_own_script_alone_and_fetches_nothing(tmp_path):
    workdir = write_run(tmp_path / "<b>run", name=HOSTILE)
    said = completion(HOSTILE, reasons={"accuracy": HOSTILE})
    hostile = row(1, id=HOSTILE, prompt=HOSTILE, solution=HOSTILE, completions=[said])
    write_lines(workdir / "rollouts" / "1.jsonl", [hostile])
    text, _ = page(read_run(workdir))
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="data"', ""]
    group = json.loads(scripts[0][1])["book"]["groups"][0]
    assert group["id"] == group["said"][0]["reasons"]["accuracy"] == "".join(group["said"][0]["tokens"]) == HOSTILE
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
        ("rollouts/1.jsonl", json.dumps(row(kind="odd")) + "\n", r'1\.jsonl:1: "kind" is "odd"'),
        ("rollouts/1.jsonl", json.dumps(row(completions=[3])) + "\n", r'1\.jsonl:1: completion 1: "text" is missing'),
        (
            "rollouts/1.jsonl",
            json.dumps(row(completions=[completion(), completion(logprobs=[-1])])) + "\n",
            r'1\.jsonl:1: completion 2: "logprobs" is \[-1\]; it takes one number for each token',
        ),
        (
            "rollouts/1.jsonl",
            json.dumps(row(completions=[completion() | {"reward": "much"}])) + "\n",
            r'completion 1: "reward" is "much"; it takes a number',
        ),
        (
            "rollouts/1.jsonl",
            json.dumps(row(kind="open", task="detection", image="a.png", solution="there")) + "\n",
            r"1\.jsonl:1: solution 'there' holds no boxes",
        ),
    ],
)
def test_what_is_damaged_is_named_by_file_and_line(tmp_path, capsys, name, text, message):
    write_run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        program.main([str(tmp_path)])
    assert not list(tmp_path.glob("report.html*"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="holds no run"):
            program.main([str(folder)])


# ------------------------------------------------------------------------------------------------------------ program


def test_the_program_writes_a_page_and_prints_its_path(tmp_path, capsys):
    workdir = write_run(tmp_path / "a", stages=("one", "two"))
    other = write_run(tmp_path / "b", steps=5)
    matrix_ = Matrix(workdir / "curriculum.json", writes=True)
    matrix_.add([Measurement("", 0, "one", 10, 1.0, 0.1, 0.5, 0.5, 5)])
    write_lines(workdir / "one" / "rollouts" / "1.jsonl", [row(1)])
    program.main([str(workdir), "--compare", str(other), "--out", str(tmp_path / "both.html")])
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'both.html'}\n"
    assert "1 of 1 groups of completions, 0.1 MB" in shown.err
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "both.html").read_text(), re.S)
    assert [(it["name"], len(it["stages"])) for it in json.loads(data)["runs"]] == [("a", 2), ("b", 1)]
    program.main([str(workdir)])
    assert capsys.readouterr().out == f"{workdir / 'report.html'}\n"


def test_a_run_without_completions_or_steps_has_a_page(tmp_path, capsys):
    write_run(tmp_path, method=Method.SFT)
    (tmp_path / "metrics.jsonl").write_text("")
    program.main([str(tmp_path)])
    assert "0 of 0 groups" in capsys.readouterr().err


def test_replay_prints_the_command_of_a_completion(tmp_path, capsys):
    workdir = write_run(tmp_path / "a run", stages=("one", "two"))
    write_lines(workdir / "two" / "rollouts" / "1-0.jsonl", [row(1), row(2)])
    write_lines(workdir / "two" / "rollouts" / "1-1.jsonl", [row(3), row(4)])
    program.main([str(workdir), "--replay", "two:1:4:2"])
    path = workdir / "two" / "rollouts" / "1-1.jsonl"
    assert capsys.readouterr().out == f"python -m currreft_jax.generate --replay='{path}:2:'2\n"
    for place, message in (
        ("two:1:4", "takes STAGE:STEP:ROW:G"),
        ("three:1:4:2", "no stage 'three'; it has one, two"),
        ("two:2:4:2", r"no completions of step 2 were written; there are \[1\]"),
        ("two:1:5:2", "step 1 has rows 1 to 4, not 5"),
    ):
        with pytest.raises(SystemExit, match=message):
            program.main([str(workdir), "--replay", place])


def test_settings_come_back_as_they_were_written(tmp_path):
    stage = Stage("one", [Source("a.jsonl", kind=Kind.OPEN)], kinds=(Kind.OPEN,), tasks=(Task.MATH,))
    config = Config(stages=[stage, Stage("two", held_out=[Source("b.jsonl")])])
    config.rewards.weights["brief"] = 0.5
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    (tmp_path / "config.json").write_text('{"stages": [{"nme": "one"}]}')
    with pytest.raises(ValueError, match=r"config\.json holds no settings of this version .*nme"):
        read_config(tmp_path)
