"""The report of an evaluation without a browser: tables, bars, and rows that two models answer otherwise."""

import json
import re

import pytest

from currreft_jax.report import __main__ as program
from currreft_jax.report.answer_pairs import ROWS_PER_CELL, pairs_json
from currreft_jax.report.comparisons import answer_folders, comparison_record, read_evaluated_models
from currreft_jax.report.page import MAX_BYTES, render_comparison
from tests.report.evaluations import (
    detection_answer,
    write_answers,
    write_detection_rows,
    write_evaluation,
)
from tests.report.test_report import HOSTILE
from tests.report.workdirs import write_run

# Rows 0-5 are right by the second model alone, 6-7 by the first alone, 8 by both, 9 by none.
FIRST, SECOND = [0] * 6 + [1, 1, 1, 0], [1] * 6 + [0, 0, 1, 0]


def pairs_of(evaluated, max_bytes=MAX_BYTES, **settings):
    text, counts = pairs_json(evaluated.models, max_bytes, **settings)
    return json.loads(text), counts


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path / "eval", {"base": FIRST, "rl": SECOND})


def test_bars_and_tables_hold_the_means_and_their_intervals(evaluation):
    record = comparison_record(read_evaluated_models([evaluation]))
    assert [model["name"] for model in record["models"]] == ["base", "rl"]
    bars = [bar for bar in record["bars"] if bar["metric"] == "readable"]
    assert [(bar["model"], bar["task"], bar["domain"], bar["mean"], bar["rows"]) for bar in bars] == [
        (0, "detection", "in", 0.3, 10),
        (1, "detection", "in", 0.7, 10),
    ]
    assert bars[0]["interval"] == pytest.approx((0.108, 0.603), abs=1e-3)  # Wilson, 3 of 10
    paper = next(table for table in record["tables"] if table["metric"] == "readable")
    assert paper["rows"][1] == ["rl", "70.0 [39.7, 89.2] n = 10"]
    assert paper["printed"] == 3 and paper["rows"][2] == ["Table 1: Qwen2.5-VL-3B", "61.8†"]
    assert any("Table 1 and Tables 2 and 4a disagree" in fault for fault in record["faults"])


def test_rows_that_differ_are_drawn_in_both_directions_by_a_seed(evaluation):
    found, counts = pairs_of(read_evaluated_models([evaluation]))
    (pair,) = found["pairs"]
    assert pair["models"] == ["base", "rl"]
    assert (pair["gained"], pair["lost"]) == (6, 2)
    gained = [row["row"] for row in pair["rows"] if row["gained"]]
    lost = [row["row"] for row in pair["rows"] if not row["gained"]]
    assert len(gained) == ROWS_PER_CELL and set(gained) < {f"row-{number}" for number in range(6)}
    assert sorted(lost) == ["row-6", "row-7"]
    assert counts == {"shown": 5, "missing": 0, "left_out": 0, "suites": 0}
    assert pairs_of(read_evaluated_models([evaluation]))[0] == found
    draws = {
        tuple(row["row"] for row in pairs_of(read_evaluated_models([evaluation]), seed=seed)[0]["pairs"][0]["rows"])
        for seed in range(8)
    }
    assert len(draws) > 4


def test_boxes_are_those_of_the_frame_that_the_model_saw(evaluation):
    row = next(row for row in pairs_of(read_evaluated_models([evaluation]))[0]["pairs"][0]["rows"] if row["gained"])
    wrong, right = row["completions"]
    assert row["gold_boxes"] == right["boxes"] == [[0.25, 0.25, 0.75, 0.75]]
    assert wrong["boxes"] == [[0.05952, 0.59524, 0.35714, 0.89286]]  # of 168 x 168
    assert (wrong["readable"], wrong["reason"], right["readable"]) == (0, "iou_below", 1)


def test_the_last_model_is_paired_with_the_first_and_each_with_the_one_before_it(tmp_path):
    out = write_evaluation(tmp_path / "eval", {"a": FIRST, "b": FIRST, "c": SECOND})
    found, _ = pairs_of(read_evaluated_models([out / name for name in "cab"]))
    assert [pair["models"] for pair in found["pairs"]] == [["c", "b"], ["c", "a"], ["a", "b"]]
    assert found["pairs"][2]["rows"] == []


def test_models_of_an_evaluation_are_in_the_order_of_their_numbers(tmp_path):
    rights = dict.fromkeys(("stage1-100", "stage1-50", "base", "2-rl"), FIRST)
    out = write_evaluation(tmp_path / "eval", rights)
    assert [folder.name for folder in answer_folders(out)] == ["2-rl", "base", "stage1-50", "stage1-100"]
    assert answer_folders(out / "base") == [out / "base"] and answer_folders(tmp_path / "none") == []


def test_checkpoints_have_their_place_in_a_run(tmp_path):
    rows = write_detection_rows(tmp_path / "rows.jsonl", 1)
    paths = {"a": "runs/demo/stage2/checkpoints/40", "b": "runs/demo/stage2", "c": "Qwen/Qwen2.5-VL-3B-Instruct"}
    folders = [
        write_answers(tmp_path / name, "boxes", rows, [detection_answer(0, True)], model=path)
        for name, path in paths.items()
    ]
    models = comparison_record(read_evaluated_models(folders))["models"]
    place = {"run": "runs/demo", "stage": "stage2", "step": 40}
    assert [model["checkpoint"] for model in models] == [place, None, None]


def test_changed_and_missing_rows_are_told(evaluation, capsys):
    rows = evaluation.parent / "rows" / "boxes.jsonl"
    rows.write_text(rows.read_text().replace("where is", "find"))
    found, counts = pairs_of(read_evaluated_models([evaluation]))
    assert found["problems"] == {"boxes": f"{rows} has changed"} and counts["shown"] == 0
    rows.unlink()
    program.main([str(evaluation)])
    assert "rows of 1 suite cannot be shown" in capsys.readouterr().err
    found, _ = pairs_of(read_evaluated_models([evaluation]))
    assert found["problems"] == {"boxes": f"{rows} is not there; run from the folder of the evaluation"}
    assert found["pairs"][0]["gained"] == 6  # they are still counted


def test_a_page_keeps_its_size_limit(evaluation):
    evaluated = read_evaluated_models([evaluation])
    whole = len(render_comparison(evaluated)[0].encode())
    text, counts = render_comparison(evaluated, max_bytes=whole - 1000)
    assert len(text.encode()) < whole - 1000
    assert counts["left_out"] > 0 and counts["shown"] + counts["left_out"] == 5
    assert f'"left_out":{counts["left_out"]}' in text


def test_a_missing_image_is_counted(evaluation):
    for image in (evaluation.parent / "rows").glob("*.png"):
        image.unlink()
    found, counts = pairs_of(read_evaluated_models([evaluation]))
    assert counts["missing"] == 5
    assert all(
        row["images"] == [None] and row["missing"] and not row["gold_boxes"] for row in found["pairs"][0]["rows"]
    )


def test_a_page_of_an_evaluation_has_hostile_text_as_data_alone(tmp_path):
    rows = write_detection_rows(tmp_path / "rows.jsonl", 1, problem=HOSTILE)
    folders = [
        write_answers(tmp_path / f"<b>{name}", "boxes", rows, [detection_answer(0, right, HOSTILE)])
        for name, right in (("first", False), ("second", True))
    ]
    text, _ = render_comparison(read_evaluated_models(folders))
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
    (row,) = json.loads(scripts[0])["answers"]["pairs"][0]["rows"]
    assert row["prompt"] == row["completions"][0]["text"] == HOSTILE
    script = scripts[1].replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert "default-src 'none'" in text and "unsafe" not in text.split("<style>")[0]


def test_the_program_writes_the_page_of_an_evaluation_or_of_chosen_models(evaluation, tmp_path, capsys):
    program.main([str(evaluation)])
    shown = capsys.readouterr()
    assert shown.out == f"{evaluation / 'report.html'}\n"
    assert "2 models, 5 rows that two answer otherwise, 0." in shown.err
    program.main([str(evaluation / "rl"), str(evaluation / "base"), "--out", str(tmp_path / "turned.html")])
    (data,) = re.findall(r'id="data">(.*?)</script>', (tmp_path / "turned.html").read_text(), re.S)
    assert [model["name"] for model in json.loads(data)["comparison"]["models"]] == ["rl", "base"]
    program.main([str(evaluation / "rl")])  # alone: tables, and no pairs
    assert "1 model, 0 rows" in capsys.readouterr().err


def test_runs_and_evaluations_are_not_mixed(evaluation, tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    for arguments, message in (
        ([evaluation, run], "run holds no answers; name folders of models"),
        ([run, tmp_path / "other"], "other is another run; add runs with --compare"),
        ([evaluation, "--compare", run], "--compare and --replay are for runs"),
    ):
        with pytest.raises(SystemExit, match=message):
            program.main(list(map(str, arguments)))
