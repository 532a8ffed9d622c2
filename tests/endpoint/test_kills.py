"""A client killed at any moment goes on where it was: the same answers, nothing asked twice, lost calls counted."""

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from currreft_jax.endpoint.ledger import open_ledger
from tests.endpoint_stub import EndpointStub, Fault, endpoint_stub
from tests.marks import quick

CONCURRENCY = 8
FAULTS = [
    [Fault.RATE_LIMIT, Fault.NONE],
    [Fault.RATE_LIMIT_AFTER_MS, Fault.NONE],
    [Fault.SERVER_ERROR, Fault.TRUNCATED, Fault.NONE],
    [Fault.RESET, Fault.HTML, Fault.NONE],
    [Fault.EMPTY],
    [Fault.NULL],
    [Fault.REFUSED],
    [Fault.OVERFLOW],
    [Fault.REJECTED],
]
REASONS = {
    Fault.SERVER_ERROR: "server",
    Fault.EMPTY: "empty",
    Fault.NULL: "empty",
    Fault.REFUSED: "refused",
    Fault.OVERFLOW: "overflow",
    Fault.REJECTED: "rejected",
}
PROGRAM = """
import json, sys
from pathlib import Path
from currreft_jax.endpoint import Failure, open_endpoint
from tests.endpoint_stub import EndpointStub, stub_settings, text_request

stub = EndpointStub(None, None, url=sys.argv[1])
concurrency = int(sys.argv[4])
settings = stub_settings(stub, Path(sys.argv[2]), concurrency=concurrency, max_concurrency=concurrency)
table = {}
with open_endpoint(settings) as endpoint:
    for outcome in endpoint.answers(text_request(f"row {number}") for number in range(int(sys.argv[3]))):
        assert outcome.key not in table
        table[outcome.key] = [outcome.reason, outcome.message] if isinstance(outcome, Failure) else outcome.texts
    print(endpoint.summary(), file=sys.stderr)
print(json.dumps(table, sort_keys=True))
"""


def faults_of(text: str) -> list[Fault]:
    """Half of the rows meet no fault, and one in a hundred no answer of the server."""
    number = int(text.split()[1])
    if number % 100 == 99:
        return [Fault.SERVER_ERROR] * 1000
    return [Fault.NONE] if number % 2 else FAULTS[number // 2 % len(FAULTS)]


def fault_of(text: str, call: int) -> Fault:
    faults = faults_of(text)
    return faults[min(call, len(faults) - 1)]


def start(stub: EndpointStub, ledger: Path, rows: int) -> subprocess.Popen[str]:
    arguments = map(str, (stub.url, ledger, rows, CONCURRENCY))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("rows", "kills"), quick([(100, 3), (1000, 20)]))
def test_kills_change_no_answer_and_lose_at_most_the_calls_in_flight(rows, kills, tmp_path):
    ledger, rng = tmp_path / "ledger.jsonl", random.Random(0)
    with endpoint_stub(fault_of, latency_s=0.002) as stub:
        whole = start(stub, tmp_path / "whole.jsonl", rows)
        expected, log = whole.communicate()
        assert whole.returncode == 0, log
        num_calls = len(stub.calls)

    lost = 0
    with endpoint_stub(fault_of, latency_s=0.002) as stub:
        for _ in range(kills):
            process = start(stub, ledger, rows)
            fatal = len(stub.calls) + rng.randint(1, num_calls // kills)

            def kill(number, process=process, fatal=fatal):
                if number == fatal:
                    threading.Timer(rng.uniform(0, 0.02), process.kill).start()

            stub.on_call = kill
            _, log = process.communicate()
            assert process.returncode == -9, log
            with open_ledger(ledger) as opened:
                assert lost <= opened.lost <= lost + CONCURRENCY
                lost = opened.lost
        last = start(stub, ledger, rows)
        table, log = last.communicate()
        assert last.returncode == 0, log
        assert json.loads(table) == json.loads(expected)
        assert_all_rows_have_their_outcome(json.loads(table), rows)
        assert f"{lost} calls lost to killed runs" in log

    assert_no_row_was_asked_twice(ledger, stub, lost)


def assert_all_rows_have_their_outcome(table: dict[str, list[str]], rows: int) -> None:
    assert table.keys() == {f"row {number}" for number in range(rows)}
    for name, outcome in table.items():
        last = faults_of(name)[-1]
        assert outcome[0] == REASONS.get(last, f"answer to {name}"), name


def assert_no_row_was_asked_twice(ledger: Path, stub: EndpointStub, lost: int) -> None:
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    sent = {event["call"]: event for event in events if event["event"] == "sent"}
    ended = Counter(event["call"] for event in events if event["event"] in ("reply", "failed"))
    assert set(ended.values()) == {1} and len(sent) == len(ended) + lost
    # A kill may fall between the line of a call and its bytes.
    assert len(ended) <= len(stub.calls) <= len(sent)
    settled, num_ended = set(), Counter()
    for event in events:
        if event["event"] == "sent":
            assert event["key"] not in settled, event
        elif event["event"] in ("reply", "failed"):
            name = sent[event["call"]]["request"]
            num_ended[name] += 1
            if event["event"] == "reply" or (event["final"] and event["reason"] != "server"):
                settled.add(event["key"])
    for name, count in num_ended.items():
        assert count <= len(faults_of(name))
