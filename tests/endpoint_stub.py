"""A local OpenAI-compatible server with faults, for tests of clients: which call meets which fault is a function."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from threading import Thread
from typing import Any

from currreft_jax.endpoint import Decoding, EndpointSettings, Message, Request

MODEL = "stub-model"


class Fault(Enum):
    """What the server does in place of a plain answer."""

    NONE = auto()
    RATE_LIMIT = auto()  # 429 without Retry-After
    RATE_LIMIT_AFTER = auto()  # 429 with Retry-After in seconds
    RATE_LIMIT_AFTER_MS = auto()  # 429 with retry-after-ms
    SERVER_ERROR = auto()  # 500
    UNAVAILABLE_HTML = auto()  # 502 with a page of a proxy
    HANG = auto()  # no response
    SLOW_TOKENS = auto()  # a byte at a time, without end
    TRUNCATED = auto()  # less than the Content-Length
    RESET = auto()  # the connection is reset
    EMPTY = auto()  # content ""
    NULL = auto()  # content null, all tokens spent on reasoning
    REFUSED = auto()  # refusal, content null
    FILTERED = auto()  # finish_reason content_filter
    WRONG_TYPES = auto()  # choices is an object
    FEWER_CHOICES = auto()  # no choices
    HTML = auto()  # 200 with a page
    NOT_JSON = auto()  # 200 with half an object
    ERROR_IN_200 = auto()  # 200 with an error of the server
    UNKNOWN_MODEL = auto()  # 404, vLLM's form
    UNKNOWN_MODEL_FLAT = auto()  # 404, the form of older servers
    NO_ROUTE = auto()  # 404 of a path
    OVERFLOW = auto()  # 400, context
    REJECTED = auto()  # 400, another
    NO_SCHEMA = auto()  # 400 for a response format of a JSON Schema, else an answer
    NO_JSON = auto()  # 400 for any response format, else an answer
    NO_ACCESS = auto()  # 401, which repeats the key
    KEY_IN_ANSWER = auto()  # an answer that repeats the key
    CUT_OFF = auto()  # half an answer, finish_reason length


@dataclass(frozen=True)
class StubCall:
    """One call as the server saw it.

    Attributes:
        text: text parts of the last message, or of those that `text_of` takes.
        body: the JSON.
        fault: what it met.
    """

    text: str
    body: dict[str, Any]
    fault: Fault


def last_text(messages: list[dict[str, Any]]) -> str:
    """Text parts of the last message."""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass
class EndpointStub:
    """A running server.

    Attributes:
        url: its base URL.
        calls: the chat completions that were asked for, in order.
        peak: most calls in flight at once.
        latency_s: seconds before every response.
        text_of: the text of a call's messages, by which faults, answers and counts are told apart.
    """

    fault_of: Callable[[str, int], Fault]
    answer_of: Callable[[str], str]
    latency_s: float = 0.0
    url: str = ""
    calls: list[StubCall] = field(default_factory=list)
    peak: int = 0
    on_call: Callable[[int], None] = lambda number: None
    text_of: Callable[[list[dict[str, Any]]], str] = last_text
    _counts: Counter[str] = field(default_factory=Counter)
    _in_flight: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request_line, *header_lines = head.decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in header_lines)}
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                if request_line.startswith("GET"):
                    _write(writer, 200, {"object": "list", "data": [{"id": MODEL}, {"id": "other"}]})
                    continue
                self._in_flight += 1
                self.peak = max(self.peak, self._in_flight)
                try:
                    if not await self._respond(json.loads(content), headers.get("authorization", ""), writer):
                        break
                finally:
                    self._in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the server stops
        finally:
            writer.close()

    async def _respond(self, body: dict[str, Any], authorization: str, writer: asyncio.StreamWriter) -> bool:
        """Responds to one chat completion; returns whether the connection goes on."""
        text = self.text_of(body["messages"])
        fault = self.fault_of(text, self._counts[text])
        self._counts[text] += 1
        self.calls.append(StubCall(text, body, fault))
        self.on_call(len(self.calls))
        await asyncio.sleep(self.latency_s)
        if fault is Fault.HANG:
            await asyncio.sleep(60)
        elif fault is Fault.SLOW_TOKENS:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
            for _ in range(3000):
                await asyncio.sleep(0.02)
                writer.write(b" ")
                await writer.drain()
        elif fault is Fault.TRUNCATED:
            writer.write(
                b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"choices": ['
            )
            await writer.drain()
        elif fault is Fault.RESET:
            writer.transport.abort()
        else:
            _write(writer, *self._response(fault, text, body, authorization))
            await writer.drain()
            return True
        return False

    def _response(
        self, fault: Fault, text: str, body: dict[str, Any], authorization: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Returns status, body and further headers of a whole response."""
        form = body.get("response_format", {}).get("type")
        if (fault is Fault.NO_SCHEMA and form == "json_schema") or (fault is Fault.NO_JSON and form):
            return 400, _error(f"response_format of type {form} is not supported", "BadRequestError"), {}
        model, page = body["model"], "<html><body>Bad gateway</body></html>"
        missing = {"message": f"The model `{model}` does not exist.", "type": "NotFoundError", "param": "model"}
        long = "This model's maximum context length is 64 tokens. However, you requested 99 tokens."
        key_text = f"Incorrect API key provided: {authorization}."
        responses: dict[Fault, tuple[int, Any, dict[str, str]]] = {
            Fault.RATE_LIMIT: (429, _error("slow down", "rate_limit_error"), {}),
            Fault.RATE_LIMIT_AFTER: (429, _error("slow down", "rate_limit_error"), {"Retry-After": "1"}),
            Fault.RATE_LIMIT_AFTER_MS: (429, _error("slow down", "rate_limit_error"), {"retry-after-ms": "5"}),
            Fault.SERVER_ERROR: (500, _error("boom", "InternalServerError"), {}),
            Fault.UNAVAILABLE_HTML: (502, page, {}),
            Fault.WRONG_TYPES: (200, {"choices": {"message": "no list"}}, {}),
            Fault.FEWER_CHOICES: (200, {"choices": []}, {}),
            Fault.HTML: (200, page, {}),
            Fault.NOT_JSON: (200, '{"choices": [', {}),
            Fault.ERROR_IN_200: (200, {"error": {"message": "provider is down", "code": 502}}, {}),
            Fault.UNKNOWN_MODEL: (404, {"error": {**missing, "code": 404}}, {}),
            Fault.UNKNOWN_MODEL_FLAT: (404, {"object": "error", **missing, "code": 404}, {}),
            Fault.NO_ROUTE: (404, {"detail": "Not Found"}, {}),
            Fault.OVERFLOW: (400, _error(long, "BadRequestError"), {}),
            Fault.REJECTED: (400, _error("temperature must be 1", "BadRequestError"), {}),
            Fault.NO_ACCESS: (401, _error(key_text, "invalid_request_error"), {}),
        }
        if fault in responses:
            return responses[fault]
        answer = key_text if fault is Fault.KEY_IN_ANSWER else self.answer_of(text)
        message: dict[str, Any] = {"role": "assistant", "content": answer}
        finish_reason = "stop"
        if fault is Fault.EMPTY:
            message["content"] = ""
        elif fault is Fault.CUT_OFF:
            message["content"], finish_reason = answer[: len(answer) // 2], "length"
        elif fault is Fault.NULL:
            message, finish_reason = {"content": None, "reasoning_content": "Hm"}, "length"
        elif fault is Fault.REFUSED:
            message = {"content": None, "refusal": "I cannot help with that."}
        elif fault is Fault.FILTERED:
            message, finish_reason = {"content": ""}, "content_filter"
        n = body.get("n", 1)
        choices = [{"index": index, "message": message, "finish_reason": finish_reason} for index in range(n)]
        usage = {"prompt_tokens": 10, "completion_tokens": 2 * n, "total_tokens": 10 + 2 * n}
        return 200, {"object": "chat.completion", "model": model, "choices": choices, "usage": usage}, {}


@contextmanager
def endpoint_stub(
    fault_of: Callable[[str, int], Fault] = lambda text, call: Fault.NONE,
    answer_of: Callable[[str], str] = lambda text: f"answer to {text}",
    latency_s: float = 0.0,
    text_of: Callable[[list[dict[str, Any]]], str] = last_text,
) -> Iterator[EndpointStub]:
    """Runs a server in a thread.

    Args:
        fault_of: (text of the call, earlier calls with this text) to the fault of a call.
        answer_of: text of the call to the answer.
        latency_s: seconds before every response.
        text_of: messages to the text of a call; by default that of the last message.
    """
    stub = EndpointStub(fault_of, answer_of, latency_s, text_of=text_of)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(stub.serve, "127.0.0.1", 0, limit=2**26))
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        asyncio.run_coroutine_threadsafe(_stop(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _write(writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) and body.startswith("<") else "application/json"
    lines = [f"HTTP/1.1 {status} Stub", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)


def stub_settings(stub: EndpointStub, ledger: Path, **changes: Any) -> EndpointSettings:
    """Settings for a stub, with short pauses, and no key."""
    quick: dict[str, Any] = {"attempts": 4, "timeout_s": 5.0, "deadline_s": 60.0, "backoff_s": 0.002}
    defaults = quick | {"max_backoff_s": 0.02, "key_variable": "CURRREFT_STUB_KEY"}
    return EndpointSettings(**({"url": stub.url, "model": MODEL, "ledger": ledger} | defaults | changes))


def text_request(text: str, **changes: Any) -> Request:
    """A request of one text, which is also its key."""
    return Request(text, (Message("user", (text,)),), Decoding(max_tokens=16), **changes)
