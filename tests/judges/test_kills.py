"""A judge killed at any moment and started again has the same judgements, and no answer is judged twice."""

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from currreft_jax.endpoint.ledger import open_ledger
from tests.endpoint_stub import EndpointStub, endpoint_stub
from tests.judges.helpers import conversation_text
from tests.judges.test_endpoint_judge import misbehaving_answer, misbehaving_fault

ROWS, KILLS, CONCURRENCY = 200, 6, 4
PROGRAM = f"""
import sys
from contextlib import closing
from pathlib import Path
from currreft_jax.config import Rewards
from currreft_jax.judges import open_judge
from tests.endpoint_stub import EndpointStub
from tests.judges.helpers import judge_settings, judged

settings = judge_settings(EndpointStub(None, None, url=sys.argv[1]), concurrency={CONCURRENCY}, max_concurrency=4)
answers = (judged(f"{{number}}", thoughts=f"number {{number}}") for number in range({ROWS}))
with closing(open_judge(settings, Rewards(), ledger=Path(sys.argv[2]), pool=None, log=print)) as judge:
    print(*sorted(map(repr, judge.judge(answers))), sep="\\n")
    print(judge.summary(), file=sys.stderr)
"""


def start(stub: EndpointStub, ledger: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stub.url, str(ledger)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_kills_change_no_judgement_and_lose_at_most_the_calls_in_flight(tmp_path):
    ledger, rng = tmp_path / "ledger", random.Random(0)
    with endpoint_stub(misbehaving_fault, misbehaving_answer, 0.002, conversation_text) as stub:
        expected, log = start(stub, tmp_path / "whole").communicate()
        num_calls = len(stub.calls)
    assert len(expected.splitlines()) == ROWS, log

    lost = 0
    with endpoint_stub(misbehaving_fault, misbehaving_answer, 0.002, conversation_text) as stub:
        for _ in range(KILLS):
            process = start(stub, ledger)
            fatal = len(stub.calls) + rng.randint(1, num_calls // KILLS)

            def kill(number, process=process, fatal=fatal):
                if number == fatal:
                    threading.Timer(rng.uniform(0, 0.02), process.kill).start()

            stub.on_call = kill
            _, log = process.communicate()
            assert process.returncode == -9, log
            with open_ledger(ledger) as opened:
                assert lost <= opened.lost <= lost + CONCURRENCY
                lost = opened.lost
        judgements, log = start(stub, ledger).communicate()
    assert judgements == expected, log
    assert f"{lost} calls lost to killed runs" in log
    replies = [event["key"] for event in map(json.loads, ledger.read_text().splitlines()) if event["event"] == "reply"]
    assert set(Counter(replies).values()) == {1}
