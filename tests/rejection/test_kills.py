"""Jobs killed at random moments go on to the same files: nothing is judged twice, lost calls are counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from currreft_jax.endpoint.ledger import open_ledger
from tests.endpoint_stub import endpoint_stub
from tests.judges.helpers import conversation_text
from tests.rejection.fakes import source_of
from tests.rejection.served import fault_of, judge_reply

CONCURRENCY = 4
KILLS = 20
# Forks a job, kills it after a random time, and begins again; prints how many were killed at work.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from currreft_jax.config import QuotaSource, Source
from tests.endpoint_stub import EndpointStub
from tests.judges.helpers import judge_settings
from tests.rejection.fakes import rejection_of
from tests.rejection.served import run_served

url, rows, out, kills, concurrency = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
judge = judge_settings(EndpointStub(None, None, url=url), concurrency=concurrency, max_concurrency=concurrency)
settings = rejection_of(QuotaSource("s", Source(rows), 30), judge=judge, held_out=0.2)
rng, killed = random.Random(0), 0

def fork():
    child = os.fork()
    if not child:
        lines = []
        try:
            run_served(settings, out, lines)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        print(*lines, sep="\\n", file=sys.stderr, flush=True)
        os._exit(0)
    return child

for _ in range(kills):
    child = fork()
    time.sleep(rng.uniform(0.15, 0.7))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
assert os.waitpid(fork(), 0)[1] == 0
print(killed)
"""


def run(url: str, rows: str, out: Path, kills: int) -> tuple[int, str]:
    arguments = [url, rows, str(out), str(kills), str(CONCURRENCY)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


@pytest.mark.slow
def test_a_job_killed_at_random_moments_keeps_the_same_rows(tmp_path):
    rows = source_of(tmp_path, "s", 90, images=0).source.file
    with endpoint_stub(fault_of, judge_reply, latency_s=0.12, text_of=conversation_text) as stub:
        killed, log = run(stub.url, rows, tmp_path / "part", KILLS)
        calls = len(stub.calls)
        run(stub.url, rows, tmp_path / "whole", 0)
    print(f"{killed} killed at work")
    assert killed >= KILLS // 2
    for name in ("kept.jsonl", "held_out.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with open_ledger(tmp_path / "part" / "judge.ledger") as ledger:
        assert ledger.lost <= killed * CONCURRENCY and calls <= ledger.calls <= calls + killed * CONCURRENCY
    assert f"{ledger.lost:,} calls lost to killed runs" in log
    keys = [
        event["key"]
        for event in map(json.loads, (tmp_path / "part" / "ledger.jsonl").read_text().splitlines())
        if event["event"] == "judgement"
    ]
    assert len(keys) == len(set(keys))
