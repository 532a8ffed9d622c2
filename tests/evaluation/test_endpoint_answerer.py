"""Suites answered by a server: verdicts as for a model of this program; no failure is graded, no row asked twice."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import EndpointLimits, EvaluatedModel, ImageCondition
from currreft_jax.endpoint import EndpointError
from currreft_jax.evaluation import runner
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.evaluation.compare import compare_models, read_model_answers
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.summary import summary_table
from tests.endpoint_stub import MODEL, Fault, endpoint_stub
from tests.evaluation.suites import evaluation_of, write_rows

ROWS = 12


def number_of(text: str) -> int:
    found = re.search(r"how many (\d+)\?", text)
    assert found
    return int(found[1])


def right(text: str) -> str:
    return f"<think> t </think> <answer> {number_of(text)} </answer>"


@pytest.fixture
def evaluation(tmp_path):
    limits = EndpointLimits(attempts=3, timeout_s=5.0, backoff_s=0.002, max_backoff_s=0.01, key_variable="NO_SUCH_KEY")
    return evaluation_of([write_rows(tmp_path / "rows", "one", ROWS)], endpoint=limits)


def evaluate(evaluation, stub, out, name="served"):
    evaluation.models = [EvaluatedModel(MODEL, name, stub.url)]
    lines = []
    return runner.evaluate(evaluation, out, lines.append), lines


def test_a_server_answers_as_this_program_would_be_scored(evaluation, tmp_path):
    with endpoint_stub(answer_of=right) as stub:
        files, lines = evaluate(evaluation, stub, tmp_path)
        again, _ = evaluate(evaluation, stub, tmp_path)
    answers = list(read_answers(files[0].path))
    assert [answer.row for answer in answers] == [f"one-{index}" for index in range(ROWS)]
    assert {answer.strict for answer in answers} == {(1,)} and again == files
    assert len(stub.calls) == ROWS  # none twice
    manifest = json.loads(manifest_path(files[0].path).read_text())
    assert manifest["model"] == {"name": "served", "path": MODEL, "endpoint": stub.url}
    assert manifest["image_encoding"] == "png" and "not checked: a server" in manifest["leaks"]
    assert any(f"{ROWS} answered, 0 failed" in line for line in lines)


def test_images_are_sent_before_the_text_in_the_size_that_a_model_sees(evaluation, tmp_path):
    evaluation.images = (ImageCondition.ORIGINAL, ImageCondition.BLANK)
    with endpoint_stub(answer_of=right) as stub:
        evaluate(evaluation, stub, tmp_path)
    by_text: dict[str, list] = {}
    for call in stub.calls:
        image, text = call.body["messages"][-1]["content"]
        encoded = image["image_url"]["url"].removeprefix("data:image/png;base64,")
        by_text.setdefault(text["text"], []).append(Image.open(io.BytesIO(base64.b64decode(encoded))))
        assert call.body["temperature"] == 0 and call.body["max_tokens"] == evaluation.sampling.max_new_tokens
    for own, blank in by_text.values():
        assert own.size == blank.size == (84, 56)  # 40 x 30 pixels, enlarged to 4 x 28 x 28 in multiples of 28
        assert np.ptp(blank) == 0 < np.ptp(own)


def test_what_a_server_cannot_take_is_told_and_never_graded(evaluation, tmp_path):
    faults = {3: Fault.OVERFLOW, 5: Fault.EMPTY, 7: Fault.REFUSED}
    with endpoint_stub(lambda text, _: faults.get(number_of(text), Fault.NONE), right) as stub:
        files, lines = evaluate(evaluation, stub, tmp_path)
    with endpoint_stub(answer_of=right) as stub:
        evaluate(evaluation, stub, tmp_path, "other")
    answers = {answer.row: answer for answer in read_answers(files[0].path)}
    assert answers["one-3"].failure.startswith("overflow: ") and answers["one-3"].completions == ()
    wrong = [row for row, answer in answers.items() if not answer.failure and answer.readable == (0,)]
    assert wrong == ["one-5", "one-7"]  # no answer and a refusal are wrong answers
    assert any("(refused 1, empty 1, overflow 1)" in line for line in lines)
    heading, row = (line.split() for line in summary_table(files).splitlines())
    assert dict(zip(heading[5:8], row[5:8], strict=True)) == {"rows": "11", "failed": "1", "strict": "81.8"}
    compared = compare_models([read_model_answers(tmp_path / name) for name in ("served", "other")])
    assert {cell.estimate.rows for cell in compared.estimates} == {ROWS - 1}
    assert "1 row is left out: the server of served could not take them" in compared.notes


def test_rows_without_an_answer_yet_end_the_run_and_are_asked_again(evaluation, tmp_path):
    with endpoint_stub(lambda text, _: Fault.TRUNCATED if number_of(text) in (2, 9) else Fault.NONE, right) as stub:
        with pytest.raises(EndpointError, match=r"2 questions have no answer yet.*\n.*one.jsonl:3: connection"):
            evaluate(evaluation, stub, tmp_path)
        stub.fault_of = lambda text, call: Fault.NONE
        before = len(stub.calls)
        files, _ = evaluate(evaluation, stub, tmp_path)
        assert len(stub.calls) - before == 2  # the other rows are in the ledger
    assert len(list(read_answers(files[0].path))) == ROWS


def test_several_processes_do_not_ask_a_server(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="one process asks a server"):
        from currreft_jax.evaluation.answerers import open_answerer

        open_answerer(EvaluatedModel(MODEL, "served", "http://localhost:1/v1"), evaluation, tmp_path, print)
