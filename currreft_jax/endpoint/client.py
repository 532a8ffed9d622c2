"""The client of an OpenAI-compatible server: each request is answered, or failed with its reason, once."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any

import httpx2

from currreft_jax.data.images import ImageError
from currreft_jax.endpoint.budget import BudgetSpent, CallBudget
from currreft_jax.endpoint.errors import EndpointError, parse_body
from currreft_jax.endpoint.ledger import Ledger, open_ledger
from currreft_jax.endpoint.pacing import AdaptiveConcurrency, Pace, backoff_s
from currreft_jax.endpoint.reply import (
    CallError,
    Failure,
    FailureReason,
    Reply,
    parse_completion,
    reply_event,
    stored_reply,
)
from currreft_jax.endpoint.request import EncodedRequest, Request, encode_request, ledger_key
from currreft_jax.endpoint.settings import ApiKey, EndpointSettings, validate_endpoint

_LOG = logging.getLogger(__name__)
_CONNECT_S = 10.0
# This machine is reached directly, whatever $HTTP_PROXY is.
_WITHOUT_PROXY: dict[str, None] = {"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None}
_RETRIED = frozenset(
    {
        *(FailureReason.CONNECTION, FailureReason.TIMEOUT, FailureReason.RATE_LIMIT),
        *(FailureReason.SERVER, FailureReason.MALFORMED),
    }
)
# Before the first answer these are mistakes in the settings, which no request survives.
_NO_CONTACT = frozenset(
    {
        *(FailureReason.ACCESS, FailureReason.MODEL, FailureReason.URL),
        *(FailureReason.CONNECTION, FailureReason.MALFORMED),
    }
)


@contextmanager
def open_endpoint(settings: EndpointSettings) -> Iterator[Endpoint]:
    """Opens the ledger and, at the first request that it cannot answer, the connection.

    Raises:
        ValueError: a setting is impossible, or the ledger cannot be used.
        OSError: the ledger cannot be opened.
    """
    validate_endpoint(settings)
    api_key = ApiKey(settings.key_variable)
    with open_ledger(settings.ledger) as ledger:
        for problem in ledger.problems:
            _LOG.warning("%s", problem)
        if ledger.lost:
            _LOG.warning("%s: %d calls of killed runs are lost: sent, never answered", settings.ledger, ledger.lost)
        ledger.open_run(settings.url, settings.model)
        loop = asyncio.new_event_loop()
        endpoint = Endpoint(settings, api_key, ledger, loop)
        thread = Thread(target=loop.run_forever, name="endpoint", daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            asyncio.run_coroutine_threadsafe(endpoint.aclose(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Endpoint:
    """An open endpoint.

    Calls run in the thread of an event loop; requests are read and outcomes returned in the caller's.

    Attributes:
        counts: how many requests were `answered`, `replayed` from the ledger, and failed for each reason; `cut_off`
            completions, and `retries`.
    """

    def __init__(
        self, settings: EndpointSettings, api_key: ApiKey, ledger: Ledger, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._settings = settings
        self._api_key = api_key
        self._ledger = ledger
        self._loop = loop
        self._concurrency = AdaptiveConcurrency(settings.concurrency, settings.max_concurrency)
        self._pace = Pace(_limit(settings.calls_per_minute), _limit(settings.tokens_per_minute))
        max_calls, max_tokens = _limit(settings.max_calls), _limit(settings.max_tokens)
        self._budget = CallBudget(max_calls, max_tokens, ledger.calls, ledger.tokens, settings.job_budget)
        self._first = asyncio.Lock()
        self._contact = False  # whether the server has answered
        self._mistake = ""  # in the settings, which the first request has found
        limits = httpx2.Limits(max_connections=settings.max_concurrency)
        headers = {"Content-Type": "application/json", **api_key.headers()}
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        self._http = httpx2.AsyncClient(headers=headers, timeout=timeout, limits=limits, mounts=_WITHOUT_PROXY)

    def answers(self, requests: Iterable[Request]) -> Iterator[Reply | Failure]:
        """Asks requests and yields their replies and failures as they come, each exactly once.

        Requests are read only as far ahead as calls may be in flight, and must not wait for outcomes. Equal requests
        share one call; outcomes in the ledger take none. An outcome is on the disk before it is yielded.

        Raises:
            EndpointError: before its first answer the server cannot be reached, or refuses the model or the key.
            OSError: the ledger cannot be written.
        """
        in_flight = _InFlight(self._submit)
        try:
            for request in requests:
                try:
                    key = ledger_key(request, self._settings)
                except ImageError as error:
                    yield self._counted(Failure(request.key, FailureReason.IMAGE, str(error)))
                    continue
                outcome = self._recorded(request, key)
                if outcome:
                    yield self._counted(outcome)
                else:
                    in_flight.add(request, key)
                while in_flight.any_finished or in_flight.size >= 2 * self._settings.max_concurrency:
                    yield from self._collected(in_flight)
            while in_flight.size:
                yield from self._collected(in_flight)
        finally:
            if not self._budget.is_spent:
                in_flight.cancel()

    def summary(self) -> str:
        """Describes the requests and calls so far in one line."""
        failed = {reason.value: self.counts[reason] for reason in FailureReason if self.counts[reason]}
        reasons = f" ({', '.join(f'{reason} {count:,}' for reason, count in failed.items())})" if failed else ""
        return (
            f"{self.counts['answered']:,} answered, {sum(failed.values()):,} failed{reasons},"
            f" {self.counts['replayed']:,} of them from the ledger; {self._budget.calls - self._ledger.calls:,} calls,"
            f" {self.counts['retries']:,} of them retries; ledger: {self._budget.calls:,} calls,"
            f" {self._budget.tokens:,} tokens, {self._ledger.lost:,} calls lost to killed runs"
        )

    async def aclose(self) -> None:
        """Cancels the calls in flight, which are recorded as interrupted, and closes the connections.

        The last calls of a spent budget are waited for: no other run could make them again.
        """
        if self._budget.is_spent:
            await self._budget.all_settled()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    def _submit(self, request: Request, key: str) -> Future[Reply | Failure]:
        return asyncio.run_coroutine_threadsafe(self._ask(request, key), self._loop)

    def _collected(self, in_flight: _InFlight) -> Iterator[Reply | Failure]:
        outcomes = in_flight.collect()
        self._ledger.sync()
        yield from map(self._counted, outcomes)

    def _counted(self, outcome: Reply | Failure) -> Reply | Failure:
        self.counts["replayed"] += outcome.from_ledger
        if isinstance(outcome, Failure):
            self.counts[outcome.reason] += 1
        else:
            self.counts["answered"] += 1
            self.counts["cut_off"] += outcome.finish_reasons.count("length")
        return outcome

    def _recorded(self, request: Request, key: str) -> Reply | Failure | None:
        """Returns the request's outcome in the ledger, unless it is to be asked again."""
        event = self._ledger.outcome(key)
        if event is None:
            return None
        if event["event"] == "reply":
            return stored_reply(event, request.key)
        reason = FailureReason(event["reason"])
        if reason in self._settings.ask_again:
            return None
        return Failure(request.key, reason, event["message"], from_ledger=True)

    async def _ask(self, request: Request, key: str) -> Reply | Failure:
        """Asks a request; until the server has answered once, requests go one by one."""
        if not self._contact:
            async with self._first:
                if self._mistake:
                    raise EndpointError(self._mistake)
                if not self._contact:
                    outcome = await self._ask_in_time(request, key)
                    if not self._contact and isinstance(outcome, Failure) and outcome.reason in _NO_CONTACT:
                        self._mistake = await self._describe(outcome)
                        raise EndpointError(self._mistake)
                    return outcome
        return await self._ask_in_time(request, key)

    async def _ask_in_time(self, request: Request, key: str) -> Reply | Failure:
        question = _Question(request, key)
        try:
            async with asyncio.timeout(None) as deadline:
                return await self._attempts(question, deadline)
        except TimeoutError:
            last = f"; the last error was: {question.last_error}" if question.last_error else ""
            problem = f"no answer within {self._settings.deadline_s:g} s: raise deadline_s{last}"
            return Failure(request.key, FailureReason.DEADLINE, problem)
        except BudgetSpent as error:
            return Failure(request.key, FailureReason.BUDGET, str(error))
        except ImageError as error:
            return Failure(request.key, FailureReason.IMAGE, str(error))

    async def _attempts(self, question: _Question, deadline: asyncio.Timeout) -> Reply | Failure:
        """Calls until there is an answer, an error that another call would repeat, or no attempt left."""
        settings = self._settings
        attempt, encoded = 0, None
        while True:
            attempt += 1
            async with self._concurrency:
                if encoded is None:
                    deadline.reschedule(self._loop.time() + settings.deadline_s)
                    encoded = await asyncio.to_thread(encode_request, question.request, settings)
                result = await self._call(question, encoded, attempt, deadline)
            if isinstance(result, Reply):
                return result
            if self._is_final(result, attempt):
                times = f"after {attempt} attempts: " if result.reason in _RETRIED else ""
                return Failure(question.request.key, result.reason, times + result.message)
            question.last_error = result.message
            pause = backoff_s(attempt, settings.backoff_s, settings.max_backoff_s)
            if result.retry_after_s is not None:
                pause = min(result.retry_after_s, settings.max_backoff_s)
                self._pace.pause(pause, self._loop.time())
            await asyncio.sleep(pause)
            self.counts["retries"] += 1

    async def _call(
        self, question: _Question, encoded: EncodedRequest, attempt: int, deadline: asyncio.Timeout
    ) -> Reply | CallError:
        """Makes one call, with its events in the ledger."""
        await self._pace.wait(encoded.tokens)
        await self._budget.reserve(encoded.tokens)
        call = self._ledger.send(question.key, question.request.key, attempt, encoded.tokens)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                result = await self._post(question.request, encoded.body)
        except CallError as error:
            result = error
        except TimeoutError:
            problem = f"no whole response within {self._settings.timeout_s:g} s: raise timeout_s, or lower max_tokens"
            result = CallError(FailureReason.TIMEOUT, problem)
        except asyncio.CancelledError:
            reason = FailureReason.DEADLINE if deadline.expired() else FailureReason.INTERRUPTED
            self._record_failure(call, question.key, CallError(reason, "cut off"), encoded.tokens, final=False)
            await self._budget.settle(encoded.tokens, encoded.tokens)
            raise
        if isinstance(result, CallError):
            result.message = self._api_key.redact(result.message)
            tokens = encoded.tokens if result.tokens is None else result.tokens
            final = self._is_final(result, attempt)
            self._record_failure(call, question.key, result, tokens, final)
        else:
            tokens = sum(result.usage) if result.usage else encoded.tokens
            self._ledger.record("reply", call=call, key=question.key, tokens=tokens, **reply_event(result))
        await self._budget.settle(encoded.tokens, tokens)
        self._adapt(result, attempt)
        return result

    async def _post(self, request: Request, body: bytes) -> Reply:
        """Sends a body and reads the completion.

        Raises:
            CallError: there is none.
        """
        url = f"{self._settings.url.rstrip('/')}/chat/completions"
        try:
            response = await self._http.post(url, content=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            problem = f"{url} cannot be reached ({type(error).__name__}: {error})"
            remedy = "start the server, or correct the URL, the proxy or the certificates"
            raise CallError(FailureReason.CONNECTION, f"{problem}: {remedy}", tokens=0) from None
        except httpx2.RequestError as error:
            problem = f"the connection broke ({type(error).__name__}: {error}): see the server's log"
            raise CallError(FailureReason.CONNECTION, problem) from None
        content = parse_body(response.status_code, response.headers, response.text, self._api_key.redact)
        content = self._api_key.redact_json(content)
        return parse_completion(content, request.key, request.decoding.n, request.decoding.max_tokens)

    def _adapt(self, result: Reply | CallError, attempt: int) -> None:
        """Adapts the concurrency to a result."""
        if isinstance(result, CallError) and result.reason in _NO_CONTACT:
            self._concurrency.erred()
            return
        self._contact = True
        if isinstance(result, Reply):
            if attempt == 1:
                self._concurrency.succeeded()
        elif result.reason is FailureReason.RATE_LIMIT:
            self._concurrency.rate_limited(self._loop.time())
        elif result.reason in _RETRIED:
            self._concurrency.erred()

    def _is_final(self, error: CallError, attempt: int) -> bool:
        return error.reason not in _RETRIED or attempt == self._settings.attempts

    def _record_failure(self, call: str, key: str, error: CallError, tokens: int, final: bool) -> None:
        problem: dict[str, Any] = {"reason": error.reason, "message": error.message, "status": error.status}
        self._ledger.record("failed", call=call, key=key, tokens=tokens, final=final, **problem)

    async def _describe(self, failure: Failure) -> str:
        """Describes a mistake in the settings; for a wrong model with the models that the server has."""
        problem = f"{self._settings.url}: {failure.message}"
        if failure.reason is not FailureReason.MODEL:
            return problem
        try:
            async with asyncio.timeout(_CONNECT_S):
                response = await self._http.get(f"{self._settings.url.rstrip('/')}/models")
            names = [str(entry["id"]) for entry in response.json()["data"]]
        except (httpx2.RequestError, TimeoutError, ValueError, LookupError, TypeError):
            return problem
        return self._api_key.redact(f"{problem}; it has {', '.join(names[:20])}")


@dataclass
class _Question:
    """A request in flight.

    Attributes:
        request: the request.
        key: its key in the ledger.
        last_error: message of its last call, if that failed.
    """

    request: Request
    key: str
    last_error: str = ""


class _InFlight:
    """Requests of one stream that have no outcome yet; equal ones share a future.

    Attributes:
        size: number of requests.
    """

    def __init__(self, submit: Callable[[Request, str], Future[Reply | Failure]]):
        self.size = 0
        self._submit = submit
        self._requests: dict[str, list[Request]] = {}
        self._futures: dict[str, Future[Reply | Failure]] = {}
        self._finished: SimpleQueue[str] = SimpleQueue()

    @property
    def any_finished(self) -> bool:
        return not self._finished.empty()

    def add(self, request: Request, key: str) -> None:
        """Submits a request, unless an equal one is in flight."""
        self.size += 1
        if key in self._requests:
            self._requests[key].append(request)
            return
        self._requests[key] = [request]
        self._futures[key] = self._submit(request, key)
        self._futures[key].add_done_callback(lambda _: self._finished.put(key))

    def collect(self) -> list[Reply | Failure]:
        """Waits for an outcome, and returns all that are there.

        Raises:
            Exception: of a request's future.
        """
        keys = [self._finished.get()]
        while self.any_finished:
            keys.append(self._finished.get())
        outcomes = []
        for key in keys:
            outcome = self._futures.pop(key).result()
            outcomes += [replace(outcome, key=request.key) for request in self._requests.pop(key)]
        self.size -= len(outcomes)
        return outcomes

    def cancel(self) -> None:
        """Cancels all requests."""
        for future in self._futures.values():
            future.cancel()


def _limit(setting: float | None) -> float:
    return math.inf if setting is None else setting
