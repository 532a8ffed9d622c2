"""The report of a job of rejected sampling without a browser: its summary, the draw of kept answers, refusals."""

import json
import re

import pytest

from currreft_jax.report import __main__ as program
from currreft_jax.report.page import MAX_BYTES
from currreft_jax.report.rejections import (
    MAX_DISAGREEMENTS,
    ROWS_PER_SOURCE,
    disagreements_json,
    kept_json,
    read_rejection,
    rejection_record,
)
from tests.report.jobs import kept_row, write_job
from tests.report.test_report import HOSTILE


@pytest.fixture
def job(tmp_path):
    return write_job(tmp_path / "job")


def kept_of(folder, max_bytes=MAX_BYTES):
    text, counts = kept_json(read_rejection(folder), max_bytes)
    return json.loads(text), counts


def test_the_summary_is_converted(job):
    record = rejection_record(read_rejection(job))
    assert (record["kept"], record["quota"], record["threshold"], record["sampled"]) == (11, 20, 85.0, 40)
    assert record["reasons"] == {"below_threshold": 29, "kept": 11}
    assert record["histogram"] == [[25, 30, 29], [95, 100, 11]]
    assert record["confusion"]["above_wrong"] == 1
    assert record["planted"] == [["correct", 50, 49, 0], ["truncated", 50, 2, 1]]
    assert record["sweep"][0] == [80, 11, 9, 0.05, None, 12.5]


def test_kept_answers_are_drawn_from_each_source_with_image_rationale_and_scores(job):
    found, counts = kept_of(job)
    sources = [row["source"] for row in found["rows"]]
    assert (sources.count("geometry"), sources.count("general")) == (ROWS_PER_SOURCE, 3)
    assert found["found"] == 11 and counts == {"shown": 8, "missing": 0}  # the held-out row counts, too
    row = found["rows"][0]
    assert row["prompt"] == "how many?" and row["answer"] == "<answer> 3 </answer>"
    (judge,) = row["judges"]
    assert (judge["rationale"], judge["overall"], judge["scores"]["format"]) == ("adds up", 97.0, 97.0)
    assert judge["name"] == "rules rules-1" and row["right"] is True
    assert found["images"][row["images"][0]]["width"] == 84
    assert kept_of(job)[0] == found


def test_answers_on_which_the_judges_disagree_are_shown_with_both_judgements(tmp_path, capsys):
    job = write_job(tmp_path / "job", disputed=MAX_DISAGREEMENTS + 2)
    text, counts = disagreements_json(read_rejection(job), MAX_BYTES)
    found = json.loads(text)
    assert found["found"] == MAX_DISAGREEMENTS + 2 and counts["shown"] == len(found["rows"]) == MAX_DISAGREEMENTS
    (first, second), (_, unjudged) = (row["judges"] for row in found["rows"][:2])
    assert (first["overall"], second["overall"], second["name"]) == (97.0, 40.0, "endpoint careful judge-1")
    assert second["rationale"] == "does not add up" and second["scores"]["accuracy"] == 40.0
    assert unjudged["overall"] is None and (unjudged["unjudged"], unjudged["scores"]) == ("unreadable", {})
    program.main([str(job)])
    assert f"8 kept rows, {MAX_DISAGREEMENTS} answers on which the judges disagree" in capsys.readouterr().err
    (job / "disagreements.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"disagreements\.jsonl is missing.*run the job again"):
        program.main([str(job)])


def test_a_page_of_a_job_keeps_its_size_limit(job):
    whole = len(kept_json(read_rejection(job), MAX_BYTES)[0])
    found, counts = kept_of(job, whole)
    assert 0 < counts["shown"] < 8 == len(found["rows"]) + 8 - counts["shown"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{}", r"summary\.json is no summary of this version \(KeyError\('calibration'\)\)"),
        ("summary.json", "[", r"summary\.json:1: not JSON"),
        ("kept.jsonl", "no JSON\n", r"kept\.jsonl:1: not JSON"),
        ("kept.jsonl", json.dumps(kept_row(1, judge={})) + "\n", r"kept\.jsonl:1: no judged answer of this version"),
    ],
)
def test_damaged_files_of_a_job_are_refused(job, name, text, message):
    (job / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        program.main([str(job)])
    assert not list(job.glob("report.html*"))


def test_the_program_writes_the_page_of_a_job_alone(job, tmp_path, capsys):
    program.main([str(job)])
    shown = capsys.readouterr()
    assert shown.out == f"{job / 'report.html'}\n" and "8 kept rows" in shown.err
    with pytest.raises(SystemExit, match="name its folder alone"):
        program.main([str(job), str(tmp_path)])


def test_hostile_text_of_a_job_is_data_alone(tmp_path):
    job = write_job(tmp_path / "<b>job", text=HOSTILE)
    program.main([str(job)])
    text = (job / "report.html").read_text("utf-8")
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert len(re.findall("<script", text)) == 2 and "<title>&lt;b&gt;job</title>" in text
