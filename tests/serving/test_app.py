"""The server with a fake model: OpenAI's forms, limits, queue, disconnects and the key."""

import asyncio
import base64
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from currreft_jax.serving import app
from currreft_jax.serving.chat_request import parse_chat_request
from currreft_jax.serving.settings import ServerLimits
from tests.serving.fakes import ENDLESS, MODEL, data_url, fake_server, load_processor, with_images

KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def processor():
    return load_processor()


@pytest.fixture(scope="module")
def server(processor):
    with fake_server(processor, timeout_s=30) as server:
        yield server


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def assert_error(response, status, words="", param=...):
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, status), response.text
    assert set(error) == {"message", "type", "param", "code"} and words in error["message"]
    if param is not ...:
        assert error["param"] == param


# -------------------------------------------------------------------------------------------------------- responses


def test_a_completion_has_the_form_of_openai(server):
    body = server.ask("hello", seed=1).json()
    choice = body["choices"][0]
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-") and body["model"] == MODEL
    assert body["system_fingerprint"] == "0123"
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"].startswith("red ")
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == len(server.sampler.prompts[-1].tokens)


def test_models_and_health(server):
    models = server.client.get("/v1/models").json()
    assert models["object"] == "list" and [entry["id"] for entry in models["data"]] == [MODEL]
    assert models["data"][0]["max_model_len"] == 512 + 64
    assert server.client.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    assert_error(server.client.get("/v1/models/other"), 404, param="model")
    assert server.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    "options", [{}, {"n": 3}, {"logprobs": True}, {"stop": "1"}, {"stop": "red"}, {"max_tokens": 5}], ids=str
)
def test_a_stream_joins_to_the_whole_answer(server, options):
    whole = server.ask("hello", seed=1, **options).json()
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *events, last = events_of(server.ask("hello", seed=1, **options, **stream))
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
        if options.get("logprobs"):
            tokens = [token for part in own if part["logprobs"] for token in part["logprobs"]["content"]]
            assert tokens == choice["logprobs"]["content"]


def test_logprobs_name_every_token(server):
    body = server.ask("hello", logprobs=True, temperature=0).json()
    tokens = body["choices"][0]["logprobs"]["content"]
    assert len(tokens) == body["usage"]["completion_tokens"]
    assert [token["logprob"] for token in tokens] == [-i / 8 for i in range(len(tokens))]
    text = "".join(token["token"] for token in tokens[:-1])
    assert text == body["choices"][0]["message"]["content"]
    assert bytes(byte for token in tokens[:-1] for byte in token["bytes"]).decode() == text


def test_token_limits_and_stops_cut_answers(server):
    cut = server.ask("hello", max_tokens=3).json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
    whole = server.text("hello", seed=1)
    assert server.text("hello", seed=1, stop=[" "]) == whole.split()[0]
    clamped = server.ask(ENDLESS, max_tokens=32_768).json()
    assert clamped["choices"][0]["finish_reason"] == "length" and clamped["usage"]["completion_tokens"] == 64


# ------------------------------------------------------------------------------------------ what answers depend on


def test_an_answer_depends_on_seed_prompt_and_choice_alone(server):
    image, other = data_url(), data_url(seed=1)
    texts = [choice["message"]["content"] for choice in server.ask("hello", seed=1, n=3).json()["choices"]]
    assert len(set(texts)) == 3 and texts[0] == server.text("hello", seed=1)
    assert server.text("hello", seed=2) != server.text("hello", seed=1) != server.text("hallo", seed=1)
    assert server.text(with_images("hello", image), seed=1) == server.text(with_images("hello", image), seed=1)
    assert server.text(with_images("hello", image), seed=1) != server.text(with_images("hello", other), seed=1)
    assert len({server.text("hello") for _ in range(3)}) > 1  # a new seed for each


def test_prompts_of_equal_tokens_and_pixels_have_one_content_whatever_their_seeds(server):
    def contents(text, *images):
        server.ask(with_images(text, *images), seed=1, n=2)
        server.ask(with_images(text, *images), seed=2, temperature=0)
        return {prompt.content for prompt in server.sampler.prompts[-3:]}

    first, second = data_url(), data_url(seed=1)
    (alone,), (other,), (text,) = contents("hello", first), contents("hello", second), contents("hallo", first)
    (both,), (swapped,) = contents("hello", first, second), contents("hello", second, first)
    assert len({alone, other, text, both, swapped}) == 5


def test_requests_of_different_temperatures_share_the_batch(server):
    texts = {}

    def ask(temperature):
        texts[temperature] = server.text("hello", temperature=temperature, seed=1)

    threads = [threading.Thread(target=ask, args=(temperature,)) for temperature in (0, 0.5, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[temperature].split()[-1] for temperature in (0, 0.5, 1)] == ["0", "0.5", "1"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1.0, 0, 1.0)),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9}, (0.7, 5, 0.9)),
        ({"temperature": 0.0005, "top_k": -1}, (0.0, 0, 1.0)),  # greedy
    ],
    ids=str,
)
def test_sampling_settings_are_those_of_the_request(fields, expected):
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    assert parse_chat_request(json.dumps(body).encode(), MODEL, ServerLimits()).sampling == expected


def test_the_requests_of_the_page_are_taken(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    (block,) = re.findall(r"^```bash\n(curl .*?)^```", page, re.S | re.M)
    content = base64.b64decode(data_url().partition(",")[2])
    (tmp_path / "photo.png").write_bytes(content)
    (tmp_path / "curl").write_text('#!/bin/bash\n[ "${@: -1}" = @- ] && tr "\\n" " " || printf %s "${@: -1}"; echo\n')
    (tmp_path / "curl").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    text, image = (parse_chat_request(line.encode(), MODEL, ServerLimits()) for line in done.stdout.splitlines())
    assert text.max_tokens == image.max_tokens == 64 and not text.images and image.images == (content,)


def test_the_conversation_goes_through_the_chat_template(server, processor):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": with_images("one <|image_pad|>", data_url(), data_url(84, 56))},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "and now"}]},
    ]
    response = server.client.post("/v1/chat/completions", json={"messages": messages, "model": MODEL})
    assert response.status_code == 200
    prompt = server.sampler.prompts[-1]
    assert [(image.original.width, image.original.height) for image in prompt.images] == [(56, 56), (84, 56)]
    items = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "one <|image_pad|>"}]
    expected = processor.prompt([messages[0], {"role": "user", "content": items}, *messages[2:]], prompt.images)
    assert prompt.tokens.tolist() == expected.tokens.tolist()


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"seed": 1 << 70}, "seed"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ],
    ids=str,
)
def test_malformed_fields_are_refused_by_name(server, fields, param):
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    assert_error(server.client.post("/v1/chat/completions", content=json.dumps(body)), 400, param=param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"n": 1' + b"0" * 5000 + b"}"], ids=len)
def test_bodies_that_are_no_json_object_are_refused(server, body):
    assert_error(server.client.post("/v1/chat/completions", content=body), 400)


def test_neutral_and_unknown_fields_are_accepted(server):
    fields = {"n": 1, "top_k": -1, "presence_penalty": 0.0, "tools": None, "logit_bias": {}, "user": "x", "best_of": 3}
    assert server.ask("x", **fields).status_code == 200


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost:1/a.png", "fetches no images"),
        ("file:///etc/passwd", "fetches no images"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,@@@@", "damaged"),
        ("data:image/png;base64,aGVsbG8=", "not a readable image"),
        (data_url(600, 600), "600 x 600 pixels"),
        (data_url(2, 450), "200 times"),
        (data_url()[:-400], "damaged"),
        (None, "fetches no images"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_images_that_cannot_be_used_are_refused(processor, url, words):
    with fake_server(processor, max_image_pixels=300_000) as server:
        assert_error(server.ask(with_images("x", url)), 400, words if "damaged" not in words else "")


def test_limits_of_body_images_and_prompt(processor):
    with fake_server(processor, max_body_bytes=400_000, max_images=1, max_prompt_tokens=20, max_waiting=2) as server:
        assert_error(server.ask("x" * 500_000), 413, "more than 400000 bytes")
        assert_error(server.ask(with_images("x", data_url(), data_url())), 400, "more than 1 images")
        assert_error(server.ask("red " * 100), 400, "maximum context length")
        assert_error(server.ask("x" * 19_000), 400, "maximum context length")
        assert_error(server.ask(with_images("x", data_url(280, 280))), 400, "maximum context length")
        assert_error(server.ask("x", n=3), 400, "n = 3", "n")
        assert_error(server.ask("x", model="other"), 404, param="model")
        assert_error(server.client.get("/v1/chat/completions"), 405)
        assert_error(server.client.get("/v2"), 404)
        assert server.sampler.prompts == []


# -------------------------------------------------------------------------------------------- queue, time, disconnects


def test_a_full_queue_answers_429_and_what_waits_is_answered(processor):
    with fake_server(processor, paused=True, timeout_s=30) as server:
        statuses = []

        def ask():
            statuses.append(server.ask("x").status_code)

        threads = [threading.Thread(target=ask) for _ in range(1 + 4)]
        threads[0].start()
        wait_for(lambda: server.sampler.is_waiting)
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: len(server.engine._waiting) == 4)
        response = server.ask("x")
        assert_error(response, 429, "full")
        assert int(response.headers["retry-after"]) > 0
        server.sampler.gate.set()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 5


def test_an_answer_that_takes_too_long_is_ended(processor):
    with fake_server(processor, paused=True, timeout_s=0.05, max_waiting=1) as server:
        for _ in range(3):  # those that have left the queue make room in it
            assert_error(server.ask("x", stream=False), 504)
        events = events_of(server.ask("x", stream=True))
        assert events[-1]["error"]["code"] == 504
        server.sampler.gate.set()
        wait_for(lambda: not server.engine._running and not server.engine._waiting and not server.sampler.running)
        assert server.engine._sampling == {}


def test_a_slow_body_is_answered_by_408(processor):
    with fake_server(processor, body_timeout_s=0.05) as server:

        async def post():
            sent = []

            async def receive():
                await asyncio.sleep(0.02)
                return {"type": "http.request", "body": b" ", "more_body": True}

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
            await server.client.app(scope | {"query_string": b""}, receive, send)
            return sent

        assert asyncio.run(post())[0]["status"] == 408


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_frees_its_slots(processor, stream):
    with fake_server(processor, max_tokens=1000) as server:
        body = json.dumps({"messages": [{"role": "user", "content": ENDLESS}], "stream": stream, "n": 2}).encode()

        async def leave():
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                while not server.sampler.running:
                    await asyncio.sleep(0.001)
                return {"type": "http.disconnect"}

            async def send(_):
                await asyncio.sleep(0.001)

            scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
            await server.client.app(scope | {"query_string": b""}, receive, send)

        server.sampler.gate.clear()
        threading.Timer(0.1, server.sampler.gate.set).start()
        asyncio.run(leave())
        wait_for(lambda: not server.sampler.running and not server.engine._running)
        assert "disconnected" in server.lines[-1] and server.text("x").startswith("red")


def test_draining_answers_what_is_waiting_and_refuses_the_rest(processor):
    with fake_server(processor, paused=True, timeout_s=30) as server:
        texts = []
        thread = threading.Thread(target=lambda: texts.append(server.text("x")))
        thread.start()
        wait_for(lambda: server.sampler.running or server.engine._running)
        server.engine.drain()
        assert_error(server.ask("x"), 503, "stopping")
        assert_error(server.client.get("/health"), 503)
        server.sampler.gate.set()
        thread.join()
        assert texts[0].startswith("red")


def test_a_failing_model_ends_every_request_by_500(processor):
    with fake_server(processor, timeout_s=30) as server:
        server.sampler.error = ArithmeticError("broken")
        assert_error(server.ask("x"), 500, "stopped")
        assert_error(server.ask("x"), 503)
    assert "broken" in server.lines


def test_a_fault_of_the_code_is_a_500_of_its_request_alone(processor, monkeypatch):
    def build(*_):
        raise KeyError("fault")

    with fake_server(processor) as server:
        with monkeypatch.context() as patch:
            patch.setattr(app, "build_prompt", build)
            assert_error(server.ask("x"), 500, "a fault of the server")
        assert server.text("x").startswith("red")


# ----------------------------------------------------------------------------------------------------------------- key


def test_every_path_needs_the_key_and_the_log_has_neither_key_nor_text(processor):
    with fake_server(processor, KEY) as server:
        assert server.ask("what is it?").status_code == 200
        for headers in ({"Authorization": ""}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY}):
            for path in ("/health", "/v1/models", "/v1/chat/completions", "/other"):
                assert_error(server.client.get(path, headers=headers), 401)
        assert server.client.get("/health", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
        log = "".join(server.lines)
        assert " ok: " in log and KEY not in log and "what is it?" not in log
