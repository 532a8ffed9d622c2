"""Serves a model: JAX in the main thread, HTTP in another one."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType

import jax
import numpy as np
import uvicorn
from PIL import Image

from currreft_jax.config import Sampling
from currreft_jax.data.processor import Processor
from currreft_jax.runtime.digests import hash_files
from currreft_jax.runtime.timing import log_compilations
from currreft_jax.sampling.continuous import SampledGroup, SampledTokens, sample_stream, slot_layout, warm_up_stream
from currreft_jax.sampling.sampler import decode_params
from currreft_jax.serving.app import ChatService, make_app
from currreft_jax.serving.engine import Engine, StreamSampler
from currreft_jax.serving.settings import ServedModel, ServerLimits
from currreft_jax.session.sources import LoadedModel, load_source, resolve_source
from currreft_jax.structs import Prompt, TokenSampling

_FLUSH_S = 10  # after the last answer, connections are closed within this time


def serve(
    served: ServedModel, limits: ServerLimits, host: str, port: int, key: str | None, log: Callable[[str], None]
) -> None:
    """Serves a model until SIGTERM or SIGINT, then answers what is waiting; a second signal stops at once.

    Args:
        served: the model.
        limits: what is taken.
        host: address to listen at.
        port: port to listen at; 0 for any.
        key: bearer key of all requests; None for none.
        log: called with a line for people.

    Raises:
        OSError: the address is taken or not this machine's, or a file cannot be read.
        ValueError: the model cannot be loaded, or a setting is impossible.
    """
    listener = _bind(host, port)
    loaded = load_source(served.source, dtype=served.dtype, min_pixels=served.min_pixels, max_pixels=served.max_pixels)
    files = sorted(path for path in resolve_source(served.source).rglob("*") if path.is_file())
    sampler = _make_sampler(loaded, served.sampling(limits), served.slots, limits.max_prompt_tokens, log)
    engine = Engine(loaded.processor, limits.max_waiting)
    service = ChatService(engine, loaded.processor, served.name, hash_files(*files), limits, log)
    config = uvicorn.Config(
        make_app(service, key),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = uvicorn.Server(config)

    def listen() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            engine.drain()

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        engine.drain()
        log(f"{signal.Signals(number).name}: answering what is waiting, then stopping")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    thread = threading.Thread(target=listen, name="http", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    log(f"{served.name} listens at http://{host}:{listener.getsockname()[1]}/v1")
    try:
        engine.run(sampler)
    finally:
        server.should_exit = True
        thread.join(_FLUSH_S + 5)


def _bind(host: str, port: int) -> socket.socket:
    """Takes the address, before the model is loaded; nothing listens yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _make_sampler(
    loaded: LoadedModel, settings: Sampling, slots: int, max_prompt_tokens: int, log: Callable[[str], None]
) -> StreamSampler:
    """Lays out the slots, and compiles the programs for a text and for a small image."""
    model, params, processor = loaded.model, loaded.params, loaded.processor
    layout = slot_layout(model, settings, slots, max_prompt_tokens)
    weights = decode_params(model, params, settings)
    log("compiling for texts and small images; nothing listens before this has ended")
    with log_compilations(log) as compiled:
        warm_up_stream(
            model,
            params,
            processor,
            [[prompt] for prompt in _warm_up_prompts(processor)],
            settings,
            layout=layout,
            weights=weights,
            token_sampling=lambda _: TokenSampling(0.0, 0, 1.0),
        )
        log(
            f"{layout.num_slots} slots of {layout.length} + {settings.max_new_tokens} tokens on {jax.device_count()}"
            f" {jax.devices()[0].platform}; compiled {compiled()}"
        )

    def sampler(
        prompts: Iterator[Prompt | None],
        token_sampling: Callable[[Prompt], TokenSampling],
        on_tokens: Callable[[SampledTokens], bool],
    ) -> Iterator[list[SampledGroup]]:
        return sample_stream(
            *(model, params, processor, prompts, settings),
            layout=layout,
            weights=weights,
            token_sampling=token_sampling,
            on_tokens=on_tokens,
        )

    return sampler


def _warm_up_prompts(processor: Processor) -> list[Prompt]:
    text = {"type": "text", "text": "What is in the image?"}
    image = Image.fromarray(np.zeros((112, 112, 3), np.uint8))
    prompts = [
        processor.prompt([{"role": "user", "content": [text]}]),
        processor.prompt([{"role": "user", "content": [{"type": "image"}, text]}], [image]),
    ]
    return [replace(prompt, content=content) for content, prompt in enumerate(prompts)]
