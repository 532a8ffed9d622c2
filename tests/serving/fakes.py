"""A server whose model is a function: answers name the key, the number of the choice and the temperature."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from starlette.testclient import TestClient

from currreft_jax.data import processor as processors
from currreft_jax.sampling.continuous import SampledGroup, SampledTokens
from currreft_jax.serving.app import ChatService, make_app
from currreft_jax.serving.engine import Engine
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.world import base
from tests import tiny

SLOTS, SEGMENT = 3, 4
MODEL = "fake"
ENDLESS = "for ever"  # a prompt with these words is answered without end


@dataclass
class FakeSampler:
    """Samples as `sample_stream` does, SEGMENT tokens at a time in SLOTS slots.

    Attributes:
        processor: encodes the answers.
        gate: nothing is sampled until it is set.
        prompts: all that were asked.
        running: prompts in slots.
        error: raised in the next segment.
        is_waiting: whether it has reached the gate.
    """

    processor: processors.Processor
    gate: threading.Event = field(default_factory=threading.Event)
    prompts: list = field(default_factory=list)
    running: dict = field(default_factory=dict)
    error: Exception | None = None
    is_waiting: bool = False

    def answer(self, prompt, sampling) -> np.ndarray:
        text = f"red {prompt.key % 1000} {prompt.first_sample if sampling.temperature else 0} {sampling.temperature:g}"
        repeats = 10_000 if ENDLESS in self.processor.decode(prompt.tokens) else 1
        return np.append(np.tile(self.processor.encode(text), repeats), self.processor.eos_token_ids[0])

    def __call__(self, prompts, token_sampling, on_tokens):
        for prompt in prompts:
            if prompt is not None:
                self.running[len(self.prompts)] = self.answer(prompt, token_sampling(prompt)), 0
                self.prompts.append(prompt)
                if len(self.running) < SLOTS:
                    continue
            self.is_waiting = True
            self.gate.wait()
            if self.error:
                raise self.error
            yield self._segment(on_tokens)

    def _segment(self, on_tokens):
        ended = []
        for number, (tokens, start) in list(self.running.items()):
            end = start + SEGMENT
            logprobs = -np.arange(len(tokens), dtype=np.float32) / 8
            if end >= len(tokens):
                ended.append(SampledGroup(number, [tokens], [logprobs], [True]))
                del self.running[number]
            elif on_tokens(SampledTokens(number, tokens[None, start:end], logprobs[None, start:end])):
                self.running[number] = tokens, end
            else:
                del self.running[number]
        return ended


@dataclass
class FakeServer:
    """A running fake.

    Attributes:
        client: sends requests to it.
        sampler: its model.
        engine: its engine.
        lines: its log.
    """

    client: TestClient
    sampler: FakeSampler
    engine: Engine
    lines: list[str]

    def ask(self, content="hello", /, **fields):
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def text(self, content="hello", /, **fields) -> str:
        return self.ask(content, **fields).json()["choices"][0]["message"]["content"]


@contextmanager
def fake_server(processor, key: str | None = None, *, paused: bool = False, **limits) -> Iterator[FakeServer]:
    """Runs a fake; its engine has a thread."""
    chosen = ServerLimits(**({"max_tokens": 64, "max_prompt_tokens": 512, "max_waiting": 4} | limits))
    sampler, lines = FakeSampler(processor), []
    if not paused:
        sampler.gate.set()
    engine = Engine(processor, chosen.max_waiting)
    service = ChatService(engine, processor, MODEL, "0123", chosen, lines.append)

    def run() -> None:
        try:
            engine.run(sampler)
        except ArithmeticError as error:
            lines.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with TestClient(make_app(service, key), raise_server_exceptions=False, headers=headers) as client:
        try:
            yield FakeServer(client, sampler, engine, lines)
        finally:  # a test that fails leaves no request waiting
            engine.drain()
            sampler.gate.set()
            thread.join(5)
    assert not thread.is_alive()


def load_processor() -> processors.Processor:
    return processors.load(base.checkpoint())


def data_url(width: int = 56, height: int = 56, seed: int = 0) -> str:
    buffer = io.BytesIO()
    tiny.picture(width, height, seed=seed).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_images(text: str, *urls: str) -> list[dict]:
    return [*[{"type": "image_url", "image_url": {"url": url}} for url in urls], {"type": "text", "text": text}]
