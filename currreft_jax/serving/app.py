"""The HTTP side: a Starlette app over an engine.

Handlers read a request, make its prompt in a thread, submit it to the engine, and wait for its deltas. Errors have
OpenAI's form.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from currreft_jax.data.processor import Processor
from currreft_jax.serving.chat_request import ChatRequest, parse_chat_request
from currreft_jax.serving.choices import ChoiceDelta
from currreft_jax.serving.engine import ChatJob, Engine
from currreft_jax.serving.errors import ApiError
from currreft_jax.serving.prompt_building import build_prompt
from currreft_jax.serving.responses import END, ResponseWriter, event, model_entry, model_list
from currreft_jax.serving.settings import ServerLimits
from currreft_jax.structs import Prompt

_READING_THREADS = 2
_MAX_READING = 64  # requests whose bodies are read at the same time
_CLIENT_CLOSED = 499  # the status of logs; nobody receives it
_SEED_BITS = 63


@dataclass(slots=True)
class ChatService:
    """Answers requests.

    Attributes:
        engine: completes prompts.
        processor: makes prompts.
        model: name of the served model.
        fingerprint: hash of its weights.
        limits: what is taken.
        log: called with a line for each request; texts, images and keys are not in it.
        created: when the server started, in seconds since 1970.
    """

    engine: Engine
    processor: Processor
    model: str
    fingerprint: str
    limits: ServerLimits
    log: Callable[[str], None]
    created: int = field(default_factory=lambda: int(time.time()))
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_READING_THREADS))
    _num_reading: int = 0

    async def health(self, _: Request) -> Response:
        """Answers `GET /health`."""
        if self.engine.draining:
            raise ApiError(503, "the server is stopping")
        return JSONResponse({"status": "ok", "model": self.model})

    async def models(self, _: Request) -> Response:
        """Answers `GET /v1/models`."""
        return JSONResponse(model_list(self.model, self.created, self._max_model_len))

    async def one_model(self, request: Request) -> Response:
        """Answers `GET /v1/models/NAME`."""
        if request.path_params["name"] != self.model:
            raise ApiError(404, f"there is no such model; this server has {self.model!r}", "model")
        return JSONResponse(model_entry(self.model, self.created, self._max_model_len))

    async def chat(self, http: Request) -> Response:
        """Answers `POST /v1/chat/completions`."""
        start, name = time.perf_counter(), f"chatcmpl-{secrets.token_hex(12)}"
        job, deltas = await self._submit(http, name)
        request = job.request
        writer = ResponseWriter(name, self.model, self.fingerprint, self.processor, request.logprobs)
        num_prompt = len(job.prompt.tokens)

        def log(outcome: str, completion_tokens: int) -> None:
            seconds = time.perf_counter() - start
            self.log(f"{name} {outcome}: {num_prompt} + {completion_tokens} tokens, {seconds:.2f} s")

        if request.stream:
            progress = _StreamOutcome()

            def end() -> None:
                self.engine.cancel(job)
                log(progress.outcome, progress.num_tokens)

            return _EventStream(self._events(job, deltas, writer, progress), end)
        collected = list[ChoiceDelta]()

        async def collect() -> None:
            async for delta in self._deltas(job, deltas):
                collected.append(delta)

        collecting, leaving = asyncio.create_task(collect()), asyncio.create_task(_disconnected(http))
        try:
            await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                log("disconnected", sum(len(delta.tokens) for delta in collected))
                return Response(status_code=_CLIENT_CLOSED)
            collecting.result()
        except ApiError as error:
            log(f"error {error.status}", sum(len(delta.tokens) for delta in collected))
            raise
        finally:
            collecting.cancel()
            leaving.cancel()
            self.engine.cancel(job)
        body = writer.completion(collected, request.num_choices, num_prompt)
        log("ok", body["usage"]["completion_tokens"])
        return JSONResponse(body)

    @property
    def _max_model_len(self) -> int:
        return self.limits.max_prompt_tokens + self.limits.max_tokens

    async def _submit(self, http: Request, name: str) -> tuple[ChatJob, asyncio.Queue[ChoiceDelta | ApiError]]:
        """Reads a request and puts it into the engine's queue."""
        if self._num_reading >= _MAX_READING:
            raise ApiError(429, "too many requests are being read: try again later", retry_after_s=1)
        self._num_reading += 1
        try:
            body = await read_body(http, self.limits)
            loop = asyncio.get_running_loop()
            request, prompt = await loop.run_in_executor(self._pool, self._read, body, name)
        finally:
            self._num_reading -= 1
        deltas: asyncio.Queue[ChoiceDelta | ApiError] = asyncio.Queue()

        def notify(delta: ChoiceDelta | ApiError) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(deltas.put_nowait, delta)

        job = ChatJob(request, prompt, notify)
        self.engine.submit(job)
        return job, deltas

    def _read(self, body: bytes, name: str) -> tuple[ChatRequest, Prompt]:
        request = parse_chat_request(body, self.model, self.limits)
        seed = secrets.randbits(_SEED_BITS) if request.seed is None else request.seed
        return request, build_prompt(request, self.processor, self.limits, seed, name)

    async def _deltas(self, job: ChatJob, deltas: asyncio.Queue[ChoiceDelta | ApiError]) -> AsyncIterator[ChoiceDelta]:
        """Yields deltas until all choices have ended.

        Raises:
            ApiError: the time is up, or the model has stopped.
        """
        unfinished = job.request.num_choices
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                while unfinished:
                    delta = await deltas.get()
                    if isinstance(delta, ApiError):
                        raise delta
                    unfinished -= delta.finish_reason is not None
                    yield delta
        except TimeoutError:
            raise ApiError(504, f"the answer took longer than {self.limits.timeout_s:g} s") from None

    async def _events(
        self,
        job: ChatJob,
        deltas: asyncio.Queue[ChoiceDelta | ApiError],
        writer: ResponseWriter,
        progress: _StreamOutcome,
    ) -> AsyncIterator[str]:
        """Yields the events of a stream."""
        try:
            for index in range(job.request.num_choices):
                yield writer.first_chunk(index)
            async for delta in self._deltas(job, deltas):
                progress.num_tokens += len(delta.tokens)
                if delta.text or delta.finish_reason or job.request.logprobs:
                    yield writer.delta_chunk(delta)
            if job.request.include_usage:
                yield writer.usage_chunk(len(job.prompt.tokens), progress.num_tokens)
            progress.outcome = "ok"
            yield END
        except ApiError as error:
            progress.outcome = f"error {error.status}"
            yield event(error.body())
            yield END


@dataclass(slots=True)
class _StreamOutcome:
    """How far a stream has come, and how it ended."""

    num_tokens: int = 0
    outcome: str = "disconnected"


class _EventStream(StreamingResponse):
    """A stream that calls `end` at its end, also where the client leaves before the first event."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def read_body(request: Request, limits: ServerLimits) -> bytes:
    """Reads a body; what exceeds the limit is read and dropped, so that the client gets to the answer.

    Raises:
        ApiError: the body is too large or too slow.
    """
    chunks, size = list[bytes](), 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.max_body_bytes:
                    chunks.clear()
                else:
                    chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {limits.body_timeout_s:g} s") from None
    except ClientDisconnect:
        raise ApiError(400, "the connection was closed within the body") from None
    if size > limits.max_body_bytes:
        raise ApiError(413, f"the body has more than {limits.max_body_bytes} bytes: send fewer or smaller images")
    return b"".join(chunks)


class KeyGuard:
    """Answers requests without the bearer key by status 401, whatever their path."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] == "lifespan":  # no request
            return await self._app(scope, receive, send)
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key):
            return await self._app(scope, receive, send)
        error = ApiError(401, "the bearer key is missing or wrong: send it in the header Authorization")
        return await _error_response(error)(scope, receive, send)


def make_app(service: ChatService, key: str | None) -> ASGIApp:
    """Makes the ASGI app.

    Args:
        service: answers requests.
        key: bearer key that every request needs; None for none.
    """
    app = Starlette(
        routes=[
            Route("/health", service.health),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.one_model),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
        ],
        exception_handlers={
            kind: lambda request, error: _error_response(_api_error(request, error))
            for kind in (ApiError, HTTPException, Exception)
        },
    )
    return KeyGuard(app, key) if key else app


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


def _api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, HTTPException):
        return ApiError(500, "a fault of the server; see its log")
    paths = "/v1/chat/completions, /v1/models and /health"
    message = f"this server has {paths}" if error.status_code == 404 else f"not with method {request.method}"
    return ApiError(error.status_code, message)


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection, whose request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
