"""Malformed requests are answered by errors in OpenAI's form, and cost neither memory nor the server.

$CURRREFT_FUZZ sets the number of requests to the program itself.
"""

import json
import os
import random
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.serving.fakes import fake_server, load_processor
from tests.serving.fuzzing import malformed_body
from tests.serving.test_serve_program import KEY, start_server

COUNT = int(os.environ.get("CURRREFT_FUZZ", "300"))
CLIENTS = 16
STREAM_END = "data: [DONE]\n\n"


def problem(status, text):
    """Returns what is wrong with an answer; None where it is a completion, or a documented error in form."""
    if status == 200:
        return None if text.endswith(STREAM_END) or "choices" in json.loads(text) else "no completion"
    error = json.loads(text)["error"]
    if set(error) != {"message", "type", "param", "code"} or error["code"] != status:
        return "not in form"
    return None if status in (400, 404, 405, 408, 413, 429) and error["message"] else "not documented"


def test_malformed_bodies_are_answered_in_form():
    rng = random.Random(1)
    with fake_server(load_processor(), max_waiting=64) as server:
        for number in range(100):
            body = malformed_body(rng)
            response = server.client.post("/v1/chat/completions", content=body)
            assert problem(response.status_code, response.text) is None, (number, body[:500], response.text)
        assert server.text("x").startswith("red") and not server.engine._running and not server.engine._sampling


def slow_post(address, rng):
    """Sends a body too slowly, or none of it, or leaves within it; returns status and text of the answer, if any."""
    leaves = rng.random() < 0.5
    with socket.create_connection(address, timeout=30) as connection:
        lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Length: 99")
        connection.sendall("\r\n".join((*lines, "", "")).encode() + b'{"messages"'[: rng.randrange(11)])
        if leaves:
            return None, ""
        answer = connection.makefile("rb").read(4096)  # of a connection that the server closes
    head, _, text = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), text


@pytest.mark.slow
def test_the_program_survives_malformed_requests(tmp_path):
    """One in 50 is a slow body; its memory does not grow after the first third."""
    flags = ["--body-timeout-s=1", "--max-body-bytes=2000000", "--max-waiting=64", "--max-images=4"]
    process, url = start_server(tmp_path / "log", *flags)
    address = ("127.0.0.1", httpx2.URL(url).port)
    rng, statuses, problems = random.Random(0), Counter(), []

    def ask(client, body, seed):
        if body is None:
            status, text = slow_post(address, random.Random(seed))
        else:
            response = client.post(f"{url}/chat/completions", content=body)
            status, text = response.status_code, response.text
        statuses[status] += 1
        if status and (found := problem(status, text)):
            problems.append((found, status, text[:200], (body or b"")[:200]))

    def resident():
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    memory = []
    try:
        limits = httpx2.Limits(max_connections=CLIENTS)
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx2.Client(timeout=120, limits=limits, headers=headers) as client, ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(3):
                bodies = (malformed_body(rng) if number % 50 else None for number in range(COUNT // 3))
                waiting = [pool.submit(ask, client, body, number) for number, body in enumerate(bodies)]
                for future in waiting:
                    future.result()
                memory.append(resident())
            assert client.get(url.replace("/v1", "/health")).json()["status"] == "ok"
        print(f"{COUNT} requests: {dict(statuses)}; MB after each third: {memory}")
        assert problems == []
        assert memory[2] < memory[0] + 100
        process.send_signal(signal.SIGTERM)
        assert process.wait(180) == 0 and "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
