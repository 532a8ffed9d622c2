"""VLMEvalKit's own client, and the `openai` package, get the answers that are sampled in this process.

`make oracle-vlmeval` sets up the environments of the wheels ms-vlmeval 0.0.20 and nvidia-vlmeval 26.3.
"""

import json
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest

import currreft_jax as cr
from currreft_jax.config import CacheType, Kind, Precision, Sampling, Task
from currreft_jax.serving.chat_request import parse_chat_request
from currreft_jax.serving.prompt_building import build_prompt
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.world import base
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import make_question
from currreft_jax.world.scenes import domains, make_scene, render_image
from currreft_jax.world.settings import WorldSettings
from tests.serving.fakes import with_images
from tests.serving.fuzzing import data_url
from tests.serving.test_serve_program import KEY, MODEL, start_server

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).parents[2]
ROWS, CLIENTS = 200, 32
LIMITS = ServerLimits(max_tokens=32, max_prompt_tokens=128)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Images of the world, and questions of all tasks about them."""
    folder, settings = tmp_path_factory.mktemp("images"), WorldSettings()
    rng, found = random.Random(0), []
    for number in range(ROWS):
        scene = make_scene(7, number, domains(settings)["in"], settings)
        task, kind = rng.choice([Task.DETECTION, Task.CLASSIFY, Task.MATH]), rng.choice([Kind.CHOICE, Kind.OPEN])
        question = make_question(scene, task, kind, image="", split="", settings=settings)
        path = folder / f"{number}.png"
        render_image(scene).save(path)
        found.append({"image": str(path), "text": user_text(question.row)})
    return found


@pytest.fixture(scope="module")
def sampled():
    """Samples greedy answers in this process, of as many conversations each time."""
    model, params = cr.load_model(base.checkpoint())
    processor = cr.load_processor(base.checkpoint())
    settings = Sampling(
        group_size=1,
        max_new_tokens=LIMITS.max_tokens,
        temperature=0.0,
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
    )

    def sample(conversations):
        requests = [
            parse_chat_request(json.dumps({"messages": messages}).encode(), MODEL, LIMITS) for messages in conversations
        ]
        prompts = [build_prompt(request, processor, LIMITS, 0, str(number)) for number, request in enumerate(requests)]
        rollout = cr.sample(model, params, processor, prompts, settings)
        tokens, lengths = np.asarray(rollout.tokens)[:, 0], np.asarray(rollout.lengths)[:, 0]
        return [processor.decode(row[:length]) for row, length in zip(tokens, lengths, strict=True)]

    return sample


def start(log, port=0):
    flags = ["--max-prompt-tokens=128", "--slots=16", "--max-waiting=64", f"--port={port}"]
    return start_server(log, *flags)


def wait_for_answers(log, count, client):
    while log.read_text().count(" ok: ") < count:
        assert client.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("wheel", ["ms", "nvidia"])
def test_its_own_client_gets_the_sampled_answers_through_a_kill(wheel, rows, sampled, tmp_path):
    """32 threads; the server is killed among the answers, and started again."""
    python = ROOT / f".venv-vlmeval-{wheel}" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing: run make oracle-vlmeval")
    process, url = start(tmp_path / "log")
    try:
        asked = {"url": url, "key": KEY, "model": MODEL, "threads": CLIENTS, "rows": rows}
        (tmp_path / "asked.json").write_text(json.dumps(asked))
        with (tmp_path / "asked.json").open() as given, (tmp_path / "answers.json").open("w") as answers:
            script = Path(__file__).with_name("vlmeval_client.py")
            with (tmp_path / "client.log").open("w") as log:
                client = subprocess.Popen([python, script], stdin=given, stdout=answers, stderr=log, cwd="/")
            wait_for_answers(tmp_path / "log", ROWS // 4, client)
            process.kill()
            process.wait()
            process, _ = start(tmp_path / "log2", httpx2.URL(url).port)
            assert client.wait(1_200) == 0, (tmp_path / "client.log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found["working"]  # its probe of a server
    expected = sampled(found["messages"])
    assert found["answers"] == [answer.strip() for answer in expected] and len(set(expected)) > ROWS // 4


def test_the_openai_package_gets_the_sampled_answers_whole_and_streamed(rows, sampled, tmp_path):
    """PNG files as they are, 32 threads."""
    conversations = [
        [{"role": "user", "content": with_images(row["text"], data_url(Path(row["image"]).read_bytes()))}]
        for row in rows
    ]
    process, url = start(tmp_path / "log")
    try:
        with openai.OpenAI(base_url=url, api_key=KEY) as client, ThreadPoolExecutor(CLIENTS) as pool:

            def ask(numbered):
                number, messages = numbered
                asked = {"model": MODEL, "messages": messages, "temperature": 0}
                if number % 2:
                    return client.chat.completions.create(**asked).choices[0].message.content
                events = client.chat.completions.create(stream=True, **asked)
                return "".join(choice.delta.content or "" for event in events for choice in event.choices)

            answers = list(pool.map(ask, enumerate(conversations)))
    finally:
        process.kill()
        process.wait()
    assert answers == sampled(conversations)
