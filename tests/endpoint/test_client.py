"""Every request is answered, or failed with its reason; nothing is asked twice."""

import base64
import io
import json
import time
from collections import Counter

import pytest
from PIL import Image

from currreft_jax.config import ImageEncoding
from currreft_jax.endpoint import (
    Decoding,
    EndpointError,
    Failure,
    FailureReason,
    Message,
    Reply,
    Request,
    open_endpoint,
    schema_format,
)
from currreft_jax.endpoint.ledger import open_ledger
from currreft_jax.endpoint.reply import parse_completion
from currreft_jax.endpoint.request import encode_request
from tests import tiny
from tests.endpoint_stub import MODEL, Fault, endpoint_stub, stub_settings, text_request

# The faults of a row's calls, the last one for ever, and the reason of its failure; None if it is answered in the end.
ROWS = [
    ([Fault.NONE], None),
    ([Fault.RATE_LIMIT, Fault.NONE], None),
    ([Fault.RATE_LIMIT_AFTER, Fault.NONE], None),
    ([Fault.RATE_LIMIT_AFTER_MS, Fault.NONE], None),
    ([Fault.SERVER_ERROR, Fault.UNAVAILABLE_HTML, Fault.NONE], None),
    ([Fault.TRUNCATED, Fault.RESET, Fault.NONE], None),
    ([Fault.HTML, Fault.NOT_JSON, Fault.ERROR_IN_200, Fault.NONE], None),
    ([Fault.RATE_LIMIT], FailureReason.RATE_LIMIT),
    ([Fault.SERVER_ERROR], FailureReason.SERVER),
    ([Fault.RESET], FailureReason.CONNECTION),
    ([Fault.WRONG_TYPES], FailureReason.MALFORMED),
    ([Fault.FEWER_CHOICES], FailureReason.MALFORMED),
    ([Fault.HTML], FailureReason.MALFORMED),
    ([Fault.EMPTY], FailureReason.EMPTY),
    ([Fault.NULL], FailureReason.EMPTY),
    ([Fault.REFUSED], FailureReason.REFUSED),
    ([Fault.FILTERED], FailureReason.REFUSED),
    ([Fault.OVERFLOW], FailureReason.OVERFLOW),
    ([Fault.REJECTED], FailureReason.REJECTED),
    ([Fault.UNKNOWN_MODEL], FailureReason.MODEL),
    ([Fault.UNKNOWN_MODEL_FLAT], FailureReason.MODEL),
    ([Fault.NO_ROUTE], FailureReason.URL),
    ([Fault.NO_ACCESS], FailureReason.ACCESS),
]
RETRIED = {FailureReason.RATE_LIMIT, FailureReason.SERVER, FailureReason.CONNECTION, FailureReason.MALFORMED}


def row_faults(text: str, call: int) -> Fault:
    """The fault of a call for `row N ...`."""
    faults, _ = ROWS[int(text.split()[1]) % len(ROWS)]
    return faults[min(call, len(faults) - 1)]


def always(fault: Fault):
    return lambda text, call: fault


def answers(settings, *requests):
    with open_endpoint(settings) as endpoint:
        return {outcome.key: outcome for outcome in endpoint.answers(requests)}


def answer(settings, request=None):
    (outcome,) = answers(settings, request or text_request("one")).values()
    return outcome


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_answered_or_failed_with_its_reason_and_none_is_asked_twice(tmp_path):
    texts = [f"row {number}" for number in range(4 * len(ROWS))]
    ledger = tmp_path / "ledger.jsonl"
    with endpoint_stub(row_faults) as stub:
        settings = stub_settings(stub, ledger)
        outcomes = answers(settings, *map(text_request, texts))
        assert outcomes.keys() == set(texts)
        calls = Counter(call.text for call in stub.calls)
        for number, text in enumerate(texts):
            faults, reason = ROWS[number % len(ROWS)]
            outcome = outcomes[text]
            if reason is None:
                assert isinstance(outcome, Reply) and outcome.texts == (f"answer to {text}",), outcome
                assert calls[text] == len(faults), faults
            else:
                assert isinstance(outcome, Failure) and outcome.reason is reason, outcome
                assert calls[text] == (settings.attempts if reason in RETRIED else 1), faults
        counted = Counter(event["event"] for event in events(ledger))
        assert counted["sent"] == len(stub.calls) == counted["reply"] + counted["failed"]

        stub.calls.clear()
        again = answers(settings, *map(text_request, texts))
        settled = {FailureReason.EMPTY, FailureReason.REFUSED, FailureReason.OVERFLOW, FailureReason.REJECTED}
        asked = {call.text for call in stub.calls}
        for text, outcome in outcomes.items():
            known = isinstance(outcome, Reply) or outcome.reason in settled
            assert again[text].from_ledger is known is (text not in asked)
            if known:
                same = {name: getattr(outcome, name) for name in outcome.__slots__ if name != "from_ledger"}
                assert same == {name: getattr(again[text], name) for name in same}


def test_failures_that_are_settled_are_asked_again_on_demand(tmp_path):
    faults = {0: Fault.EMPTY}
    with endpoint_stub(lambda text, call: faults.get(call, Fault.NONE)) as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl", ask_again=frozenset({FailureReason.EMPTY}))
        assert answer(settings).reason is FailureReason.EMPTY
        assert answer(settings).texts == ("answer to one",)
        assert answer(settings).from_ledger


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.UNKNOWN_MODEL, ["does not exist", "name a model", "it has stub-model, other"]),
        (Fault.UNKNOWN_MODEL_FLAT, ["HTTP 404: The model `stub-model` does not exist: name a model"]),
        (Fault.NO_ROUTE, ["HTTP 404: Not Found", "usually ends in /v1"]),
        (Fault.NO_ACCESS, ["HTTP 401", "set the environment variable of the API key"]),
        (Fault.HTML, ["is not JSON", "does the endpoint's URL end in /v1?"]),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_mistake_in_the_settings_stops_at_the_first_request(fault, words, tmp_path):
    with endpoint_stub(always(fault)) as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl")
        with pytest.raises(EndpointError) as caught, open_endpoint(settings) as endpoint:
            list(endpoint.answers(slowly(text_request(f"row {number}") for number in range(20))))
        assert {call.text for call in stub.calls} == {"row 0"}
    for word in [stub.url, *words]:
        assert word in str(caught.value)


def slowly(requests):
    """Requests whose reading takes longer than the first call."""
    for request in requests:
        yield request
        time.sleep(0.02)


def test_an_unreachable_host_stops_at_the_first_request(tmp_path):
    with endpoint_stub() as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl")
    with pytest.raises(EndpointError, match=r"after 4 attempts: .* cannot be reached .* start the server, or correct"):
        answers(settings, text_request("one"), text_request("two"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.OVERFLOW, "lower max_tokens or the size of the images"),
        (Fault.NULL, "16 tokens were spent before any text, perhaps on reasoning: raise max_tokens"),
        (Fault.REFUSED, "I cannot help with that."),
        (Fault.SERVER_ERROR, "after 4 attempts: HTTP 500: boom: see the server's log"),
        (Fault.ERROR_IN_200, "HTTP 502: provider is down"),
        (Fault.RATE_LIMIT, "HTTP 429: slow down: lower max_concurrency"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_failures_say_what_to_do(fault, words, tmp_path):
    with endpoint_stub(always(fault)) as stub:
        assert words in answer(stub_settings(stub, tmp_path / "ledger.jsonl")).message


def test_requests_are_read_only_as_far_ahead_as_calls_may_be_in_flight(tmp_path):
    read, furthest = 0, 0

    def requests():
        nonlocal read
        for number in range(100):
            read += 1
            yield text_request(f"row {number}")

    with endpoint_stub() as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl", concurrency=2, max_concurrency=4)
        with open_endpoint(settings) as endpoint:
            for done, _ in enumerate(endpoint.answers(requests())):
                furthest = max(furthest, read - done)
                assert stub.peak <= 4
    assert read == 100 and furthest <= 2 * 4 + 1


def test_equal_requests_share_one_call_unless_they_are_repetitions(tmp_path):
    question = (Message("user", ("same",)),)
    requests = [Request(f"{key}", question, Decoding(16), repetition=key // 2) for key in range(6)]
    with endpoint_stub(latency_s=0.05) as stub:
        outcomes = answers(stub_settings(stub, tmp_path / "ledger.jsonl"), *requests)
        assert outcomes.keys() == {request.key for request in requests}
        assert len(stub.calls) == 3


@pytest.mark.parametrize("limited", [False, True], ids=["doubles", "grows by one a round after a rate limit"])
def test_the_number_of_calls_in_flight_follows_the_server(limited, tmp_path):
    first = []

    def fault_of(text, call):
        first.append(text)
        return Fault.RATE_LIMIT if limited and len(first) == 2 else Fault.NONE

    with endpoint_stub(fault_of, latency_s=0.1) as stub:
        with open_endpoint(stub_settings(stub, tmp_path / "ledger.jsonl", concurrency=10)) as endpoint:
            outcomes = list(endpoint.answers(text_request(f"row {number}") for number in range(45)))
        assert all(isinstance(outcome, Reply) for outcome in outcomes)
        assert 9 < stub.peak <= 12 if limited else 12 < stub.peak <= 40
        assert f"45 answered, 0 failed, 0 of them from the ledger; {45 + limited} calls" in endpoint.summary()


def test_a_pause_that_the_server_asks_for_holds_all_calls(tmp_path):
    times = []

    def fault_of(text, call):
        times.append(time.monotonic())
        return Fault.RATE_LIMIT_AFTER if len(times) == 2 else Fault.NONE

    with endpoint_stub(fault_of) as stub:
        changes = {"concurrency": 1, "max_concurrency": 1, "max_backoff_s": 0.2}
        answers(stub_settings(stub, tmp_path / "ledger.jsonl", **changes), *(text_request(f"{n}") for n in range(4)))
        assert [call.text for call in stub.calls[:3]] == ["0", "1", "2"]
    assert times[2] - times[1] >= 0.2


def test_a_request_ends_at_its_deadline_with_its_last_error(tmp_path):
    with endpoint_stub(lambda text, call: Fault.HANG if call else Fault.SERVER_ERROR) as stub:
        started = time.monotonic()
        outcome = answer(stub_settings(stub, tmp_path / "ledger.jsonl", deadline_s=0.7))
    assert time.monotonic() - started < 4
    assert outcome.reason is FailureReason.DEADLINE
    assert "0.7 s: raise deadline_s; the last error was: HTTP 500: boom" in outcome.message
    assert [event["reason"] for event in events(tmp_path / "ledger.jsonl")[2:] if "reason" in event] == [
        "server",
        "deadline",
    ]


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.SLOW_TOKENS], ids=lambda fault: fault.name)
def test_a_call_ends_at_its_timeout(fault, tmp_path):
    with endpoint_stub(always(fault)) as stub:
        outcome = answer(stub_settings(stub, tmp_path / "ledger.jsonl", attempts=2, timeout_s=0.1))
    assert outcome.reason is FailureReason.TIMEOUT
    assert outcome.message == "after 2 attempts: no whole response within 0.1 s: raise timeout_s, or lower max_tokens"


def test_a_call_that_timed_out_is_tried_again(tmp_path):
    with endpoint_stub(lambda text, call: Fault.NONE if call else Fault.SLOW_TOKENS) as stub:
        assert isinstance(answer(stub_settings(stub, tmp_path / "ledger.jsonl", attempts=9, timeout_s=0.3)), Reply)


def test_calls_end_at_the_budget_of_all_runs(tmp_path):
    requests = [text_request(f"row {number}") for number in range(10)]
    with endpoint_stub() as stub:
        ledger = tmp_path / "ledger.jsonl"
        first = answers(stub_settings(stub, ledger, max_calls=4), *requests)
        assert Counter(type(outcome) for outcome in first.values()) == {Reply: 4, Failure: 6}
        assert "raise max_calls, which is 4" in next(
            outcome.message for outcome in first.values() if isinstance(outcome, Failure)
        )
        second = answers(stub_settings(stub, ledger, max_calls=6), *requests)
        assert sum(isinstance(outcome, Reply) for outcome in second.values()) == 6
        assert len(stub.calls) == 6


def test_closing_waits_for_the_last_call_of_a_spent_budget_and_for_no_request_that_waits_its_turn(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with endpoint_stub(latency_s=0.3) as stub:
        assert isinstance(answer(stub_settings(stub, ledger)), Reply)
        settings = stub_settings(stub, ledger, max_calls=3, calls_per_minute=60)
        begun = time.perf_counter()
        with open_endpoint(settings) as endpoint:
            outcomes = endpoint.answers(text_request(f"row {number}") for number in range(10))
            assert isinstance(next(outcomes), Reply)  # the second is on its way, the others wait seconds
            while len(stub.calls) < 3:
                time.sleep(0.01)
            outcomes.close()
        assert time.perf_counter() - begun < 4
    with open_ledger(ledger) as kept:
        assert (kept.calls, kept.lost) == (3, 0)
    events = [json.loads(line)["event"] for line in ledger.read_text().splitlines()]
    assert events.count("reply") == 3 and "failed" not in events


def test_tokens_are_reserved_before_a_call_goes_out(tmp_path):
    """A call takes 12 tokens, and its estimate is 19: the budget never lets two of them go out at once."""
    requests = [text_request(f"row {number}") for number in range(10)]
    with endpoint_stub(latency_s=0.01) as stub:
        outcomes = answers(stub_settings(stub, tmp_path / "ledger.jsonl", max_tokens=12 * 4 + 19), *requests)
        assert sum(isinstance(outcome, Reply) for outcome in outcomes.values()) == 5
        assert {o.reason for o in outcomes.values() if isinstance(o, Failure)} == {FailureReason.BUDGET}


def test_a_call_whose_usage_is_unknown_costs_its_estimate(tmp_path):
    with endpoint_stub(always(Fault.RESET)) as stub, pytest.raises(EndpointError):
        answer(stub_settings(stub, tmp_path / "ledger.jsonl", attempts=3))
    with open_ledger(tmp_path / "ledger.jsonl") as ledger:
        estimate = encode_request(text_request("one"), stub_settings(stub, tmp_path)).tokens
        assert (ledger.calls, ledger.tokens, ledger.lost) == (3, 3 * estimate, 0)


def test_the_body_is_the_request(tmp_path):
    decoding = Decoding(max_tokens=9, temperature=0.5, top_p=0.9, n=2, seed=7)
    messages = (Message("system", ("Be brief.",)), Message("user", ("Why?",)))
    request = Request("one", messages, decoding, response_format=schema_format({"type": "object"}))
    with endpoint_stub() as stub:
        changes = {"extra_body": {"top_k": 1}, "token_limit_field": "max_completion_tokens"}
        outcome = answer(stub_settings(stub, tmp_path / "ledger.jsonl", **changes), request)
    assert outcome.texts == ("answer to Why?",) * 2
    assert stub.calls[0].body == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 7,
        "top_k": 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
        },
    }


@pytest.mark.parametrize("encoding", ImageEncoding, ids=lambda encoding: encoding.value)
def test_images_are_sent_in_the_stated_encoding_and_in_their_place(encoding, tmp_path):
    picture = tiny.picture(40, 30)
    path = tmp_path / "picture.webp"
    picture.save(path, lossless=True)
    buffer = io.BytesIO()
    picture.convert("RGBA").save(buffer, "PNG")
    request = Request("one", (Message("user", (path, "Compare: ", buffer.getvalue())),), Decoding(16))
    with endpoint_stub() as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl", image_encoding=encoding)
        assert answer(settings, request).texts == ("answer to Compare: ",)
        assert answer(settings, request).from_ledger
    first, text, second = stub.calls[0].body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Compare: "}
    media_types = {ImageEncoding.PNG: ("png",) * 2, ImageEncoding.JPEG: ("jpeg",) * 2}.get(encoding, ("webp", "png"))
    for part, media_type in zip((first, second), media_types, strict=True):
        head, _, content = part["image_url"]["url"].partition(",")
        assert head == f"data:image/{media_type};base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.format == media_type.upper() and image.size == (40, 30)
        if encoding is ImageEncoding.PNG:
            assert image.mode == "RGB" and image.tobytes() == picture.convert("RGB").tobytes()


def test_an_unreadable_image_fails_its_own_request_alone(tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    requests = [
        Request(name, (Message("user", (part, name)),), Decoding(16))
        for name, part in {"missing": tmp_path / "none.png", "damaged": damaged, "text": "What?"}.items()
    ]
    with endpoint_stub() as stub:
        outcomes = answers(stub_settings(stub, tmp_path / "ledger.jsonl"), *requests)
        assert len(stub.calls) == 1
    assert isinstance(outcomes["text"], Reply)
    for name, file in {"missing": "none.png", "damaged": "damaged.png"}.items():
        assert outcomes[name].reason is FailureReason.IMAGE
        assert file in outcomes[name].message and "not a readable image" in outcomes[name].message


def test_a_stream_that_is_left_records_its_calls_as_interrupted(tmp_path):
    with endpoint_stub(lambda text, call: Fault.HANG if text == "slow" else Fault.NONE) as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl")
        with open_endpoint(settings) as endpoint:
            for outcome in endpoint.answers(map(text_request, ["one", "slow", "two"])):
                if outcome.key == "two":
                    break
    with open_ledger(tmp_path / "ledger.jsonl") as ledger:
        assert ledger.lost == 0
    assert "interrupted" in {event.get("reason") for event in events(tmp_path / "ledger.jsonl")}


def test_this_machine_is_reached_without_a_proxy(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with endpoint_stub() as stub:
        assert isinstance(answer(stub_settings(stub, tmp_path / "ledger.jsonl")), Reply)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "localhost:8000"}, "endpoint.url is 'localhost:8000'; it takes a base URL"),
        ({"url": "http://[::1:8000/v1"}, "it takes a base URL"),
        ({"attempts": 0}, "endpoint.attempts is 0; it takes 1 or more"),
        ({"model": ""}, "endpoint.model is ''"),
        ({"max_concurrency": 3}, "endpoint.max_concurrency is 3; it takes 20"),
        ({"timeout_s": 0.0}, "endpoint.timeout_s is 0.0; it takes more than 0"),
        ({"max_tokens": -1}, "endpoint.max_tokens is -1; it takes 0 or more"),
        ({"extra_body": {"stream": True}}, "endpoint.extra_body is {'stream': True}; it takes other fields than"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused_before_the_ledger_is_made(changes, words, tmp_path):
    with endpoint_stub() as stub:
        settings = stub_settings(stub, tmp_path / "ledger.jsonl", **changes)
    with pytest.raises(ValueError) as caught, open_endpoint(settings):
        pass
    assert words in str(caught.value)
    assert not (tmp_path / "ledger.jsonl").exists()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_thought_that_the_server_cut_out_is_put_back(field):
    def text(content: str, thought: str | None) -> str:
        message = {"role": "assistant", "content": content, field: thought}
        return parse_completion({"choices": [{"message": message, "finish_reason": "stop"}]}, "k", 1, 16).texts[0]

    assert text(" <answer>4</answer>", " two and two ") == "<think> two and two </think> <answer>4</answer>"
    assert text("4", None) == text("4", "") == "4"
