"""The ledger's lines survive kills and damage, or say that they did not."""

import json
import logging
import os
import subprocess
import sys

import pytest

from currreft_jax.endpoint import Decoding, EndpointSettings, Message, Reply, Request, open_endpoint
from currreft_jax.endpoint.ledger import open_ledger
from currreft_jax.endpoint.request import ledger_key
from currreft_jax.runtime.sealed_file import SealedFileError
from tests.endpoint.test_client import answer, answers
from tests.endpoint_stub import endpoint_stub, stub_settings, text_request

REPLY = {"texts": ["yes"], "finish_reasons": ["stop"], "usage": None, "model": None}


@pytest.fixture
def path(tmp_path):
    """A ledger with one answered call and one that was cut off by a kill."""
    path = tmp_path / "ledger.jsonl"
    with open_ledger(path) as ledger:
        ledger.open_run("http://host/v1", "model")
        ledger.record("reply", call=ledger.send("a", "row a", 1, 50), key="a", tokens=12, **REPLY)
        ledger.send("b", "row b", 1, 70)
    return path


def test_outcomes_calls_and_lost_calls_are_read_back(path):
    with open_ledger(path) as ledger:
        assert (ledger.calls, ledger.tokens, ledger.lost, ledger.problems) == (2, 12 + 70, 1, [])
        outcome = ledger.outcome("a")
        assert outcome is not None and outcome["texts"] == ["yes"]
        assert ledger.outcome("b") is None


def test_a_failure_is_an_outcome_only_if_it_is_final(path):
    with open_ledger(path) as ledger:
        for key, final in {"c": False, "d": True}.items():
            call = ledger.send(key, key, 1, 9)
            ledger.record("failed", call=call, key=key, tokens=0, final=final, reason="server", message="", status=500)
    with open_ledger(path) as ledger:
        assert ledger.outcome("c") is None
        outcome = ledger.outcome("d")
        assert outcome is not None and outcome["reason"] == "server"
        assert ledger.tokens == 12 + 70, "a call without tokens costs none"


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_an_incomplete_last_line_is_dropped(path, kept):
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: len(whole) - len(last)] + last[: int(len(last) * kept)])
    with open_ledger(path) as ledger:
        (problem,) = ledger.problems
        assert problem.startswith(f"{path}:4: dropped") and ledger.lost == 0
        ledger.record("note", key="c")
    assert path.read_bytes().startswith(whole[: -len(last)])
    with open_ledger(path) as ledger:
        assert ledger.problems == [] and ledger.calls == 1


def test_a_kill_while_the_first_line_is_written_leaves_an_empty_ledger(path):
    path.write_bytes(path.read_bytes()[:30])
    with open_ledger(path) as ledger:
        assert len(ledger.problems) == 1
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line_index", range(4))
def test_a_damaged_line_is_named_and_ignored(path, line_index):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line_index] = lines[line_index].replace(b'"', b"'", 1)
    path.write_bytes(b"".join(lines))
    with open_ledger(path) as ledger:
        (problem,) = ledger.problems
        assert problem.startswith(f"{path}:{line_index + 1}: damaged")
        assert (ledger.outcome("a") is None) == (line_index == 2)
        assert ledger.calls == (1 if line_index == 3 else 2)
    assert path.read_bytes() == b"".join(lines)


def test_a_changed_answer_is_noticed(path):
    path.write_bytes(path.read_bytes().replace(b'"yes"', b'"no!"'))
    with open_ledger(path) as ledger:
        assert ledger.outcome("a") is None and ":3: damaged" in ledger.problems[0]


@pytest.mark.parametrize("content", ['{"id": 1}\n', '{"id": 1}', '{"event":"x"}\n{"event":"opened","time":'])
def test_another_file_is_refused_and_not_changed(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(SealedFileError, match=r"rows.jsonl:1: this is no ledger"), open_ledger(path):
        pass
    assert path.read_text() == content


def test_a_ledger_of_another_version_is_refused(path, monkeypatch):
    monkeypatch.setattr("currreft_jax.endpoint.ledger.VERSION", 2)
    with pytest.raises(SealedFileError, match=r"ledger.jsonl: a ledger of version 1, which"), open_ledger(path):
        pass


def test_one_process_at_a_time(path):
    program = (
        "import sys; from pathlib import Path; from currreft_jax.endpoint.ledger import open_ledger\n"
        "with open_ledger(Path(sys.argv[1])): pass"
    )
    with open_ledger(path):
        process = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert process.returncode and "another process writes it: wait for it" in process.stderr


def test_two_ledgers_are_merged_by_concatenation(path, tmp_path):
    other = tmp_path / "other.jsonl"
    with open_ledger(other) as ledger:
        ledger.send("c", "row c", 1, 1)
        ledger.record("reply", call=ledger.send("b", "row b", 1, 70), key="b", tokens=20, **REPLY)
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with open_ledger(path) as ledger:
        assert (ledger.calls, ledger.tokens, ledger.lost) == (4, 12 + 70 + 1 + 20, 2)
        assert ledger.outcome("b") is not None


def test_a_line_that_the_disk_takes_in_part_is_taken_back(path, monkeypatch):
    before = path.read_bytes()
    with open_ledger(path) as ledger:
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
        with pytest.raises(OSError, match="the disk may be full"):
            ledger.record("note", key="c")
        monkeypatch.undo()
    assert path.read_bytes() == before


def test_texts_of_any_kind_survive(path):
    texts = ["line\nbreak", "中文", "\ud800 lone", '","sha256":"0000000000000000"}', "\u2028"]
    with open_ledger(path) as ledger:
        ledger.record("reply", call="x", key="c", tokens=0, **{**REPLY, "texts": texts})
    with open_ledger(path) as ledger:
        outcome = ledger.outcome("c")
        assert outcome is not None and outcome["texts"] == texts


def test_an_outcome_is_on_the_disk_before_it_is_yielded(tmp_path, monkeypatch):
    ledger = tmp_path / "ledger.jsonl"
    synced = 0

    def fsync(file):
        nonlocal synced
        synced = ledger.stat().st_size

    monkeypatch.setattr(os, "fsync", fsync)
    with endpoint_stub() as stub, open_endpoint(stub_settings(stub, ledger)) as endpoint:
        for outcome in endpoint.answers(text_request(f"row {number}") for number in range(20)):
            lines = ledger.read_bytes()[:synced].splitlines()
            assert any(b'"reply"' in line and json.dumps(outcome.texts[0]).encode() in line for line in lines)


def test_damage_and_lost_calls_are_reported(path, tmp_path, caplog):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damaged\n" + b"".join(lines[1:]))
    with (
        caplog.at_level(logging.WARNING),
        endpoint_stub() as stub,
        open_endpoint(stub_settings(stub, path)) as endpoint,
    ):
        assert "1 calls lost" in endpoint.summary()
    assert f"{path}:2: damaged" in caplog.text
    assert f"{path}: 1 calls of killed runs are lost: sent, never answered" in caplog.text


CHANGES = [
    {"model": "another"},
    {"url": "http://127.0.0.1:1/v1"},
    {"extra_body": {"top_k": 1}},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_request_to_another_model_or_server_has_another_key(change, tmp_path):
    with endpoint_stub() as stub:
        settings = stub_settings(stub, tmp_path)
        other = stub_settings(stub, tmp_path, **change)
        assert ledger_key(text_request("one"), settings) != ledger_key(text_request("one"), other)


def test_the_key_of_an_image_is_its_content(tmp_path):
    def key(name, content):
        (tmp_path / name).write_bytes(content)
        request = Request("one", (Message("user", (tmp_path / name,)),), Decoding(16))
        return ledger_key(request, EndpointSettings(url="http://host/v1", model="model", ledger=tmp_path))

    assert key("a.png", b"one") == key("b.png", b"one") != key("a.png", b"two")


def test_a_moved_ledger_answers_without_a_server(tmp_path):
    with endpoint_stub() as stub:
        answers(stub_settings(stub, tmp_path / "a.jsonl"), text_request("one"))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    outcome = answer(stub_settings(stub, tmp_path / "b.jsonl"))
    assert isinstance(outcome, Reply) and outcome.from_ledger
