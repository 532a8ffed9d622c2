"""The program as a process, with the small model of the package and the `openai` package as its client."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openai
import pytest

import currreft_jax as cr
from currreft_jax import serve
from currreft_jax.config import CacheType, Precision, Sampling
from currreft_jax.serving.chat_request import parse_chat_request
from currreft_jax.serving.prompt_building import build_prompt
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.world import base
from currreft_jax.world.demo import demo_question, demo_scene
from currreft_jax.world.scenes import render_image

KEY = "a-key"
LIMITS = ServerLimits(max_tokens=32, max_prompt_tokens=64)
FLAGS = ["--slots=4", "--segment=16", "--max-tokens=32", "--max-prompt-tokens=64", "--precision=float32"]
MODEL = "currreft-base"


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (["--host=0.0.0.0"], "", "open to other machines"),
        ([], "no key ", "holds no key"),
        (["--model=missing/folder"], KEY, "missing/folder"),
        (["--max-waiting=0"], KEY, "max_waiting = 0"),
        (["--slots=0"], KEY, "slots = 0"),
    ],
    ids=str,
)
def test_impossible_options_end_in_one_line(arguments, key, words, monkeypatch, capsys):
    if key:
        monkeypatch.setenv(serve.KEY_VARIABLE, key)
    else:
        monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert serve.main([*arguments, "--port=0"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("serve: ") and error.count("\n") == 1


def test_an_address_that_is_taken_ends_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main([f"--port={taken.getsockname()[1]}"]) == 1
    assert capsys.readouterr().err.startswith("serve: ")


def start_server(log, *flags):
    """Starts the program; returns the process and its URL."""
    command = [sys.executable, "-m", "currreft_jax.serve", "--port=0", *FLAGS, *flags]
    process = subprocess.Popen(command, stderr=log.open("w"), env={**os.environ, serve.KEY_VARIABLE: KEY})
    while "listens at" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return process, log.read_text().split("listens at ")[1].split()[0]


def messages():
    buffer = io.BytesIO()
    render_image(demo_scene()).save(buffer, "png")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": demo_question()}]
    return [{"role": "user", "content": parts}]


def sampled_texts(seed, temperature):
    """Samples four choices in this process."""
    model, params = cr.load_model(base.checkpoint())
    processor = cr.load_processor(base.checkpoint())
    request = parse_chat_request(json.dumps({"messages": messages()}).encode(), MODEL, LIMITS)
    prompt = build_prompt(request, processor, LIMITS, seed, "here")
    settings = Sampling(
        group_size=4,
        max_new_tokens=32,
        temperature=temperature,
        segment=16,
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
    )
    rollout = cr.sample(model, params, processor, [replace(prompt, name="here")], settings)
    tokens, lengths = np.asarray(rollout.tokens)[0], np.asarray(rollout.lengths)[0]
    return [processor.decode(tokens[g, : lengths[g]]) for g in range(4)]


@pytest.mark.slow
def test_answers_are_those_of_the_sampler_and_survive_a_kill(tmp_path):
    """Whole and streamed, alone and beside fifteen others; SIGTERM answers what is waiting."""
    expected = {0.0: sampled_texts(5, 0.0), 1.0: sampled_texts(5, 1.0)}
    assert len(set(expected[1.0])) > 1
    process, url = start_server(tmp_path / "log")

    def ask(temperature, stream=False):
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            create = client.chat.completions.create
            asked = {"model": MODEL, "messages": messages(), "temperature": temperature, "seed": 5, "n": 4}
            if not stream:
                return [choice.message.content for choice in create(**asked).choices]
            texts = [""] * 4
            for event in create(stream=True, **asked):
                for choice in event.choices:
                    texts[choice.index] += choice.delta.content or ""
            return texts

    try:
        assert ask(1.0) == expected[1.0] and ask(0.0, stream=True) == expected[0.0]
        with ThreadPoolExecutor(16) as pool:
            asked = [(float(number % 2), number % 3 == 0) for number in range(16)]
            for (temperature, _), texts in zip(asked, pool.map(lambda each: ask(*each), asked), strict=True):
                assert texts == expected[temperature]
        with pytest.raises(openai.AuthenticationError), openai.OpenAI(base_url=url, api_key="other") as client:
            client.models.list()
        process.kill()
        process.wait()
        process, url = start_server(tmp_path / "log2")
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(ask, 1.0) for _ in range(8)]
            while len((tmp_path / "log2").read_text().split(" ok: ")) < 2:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            answered = [future for future in waiting if not future.exception()]
        assert len(answered) > 1 and all(future.result() == expected[1.0] for future in answered)
        assert process.wait(20) == 0
        for name in ("log", "log2"):
            assert KEY not in (tmp_path / name).read_text()
    finally:
        process.kill()
        process.wait()
