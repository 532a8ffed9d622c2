"""Concurrency, rates and pauses as pure functions of the time."""

import time
from email.utils import formatdate

import pytest

from currreft_jax.endpoint.errors import response_error
from currreft_jax.endpoint.pacing import AdaptiveConcurrency, Pace, backoff_s, retry_after_s
from currreft_jax.endpoint.reply import FailureReason


def a_round(concurrency: AdaptiveConcurrency) -> float:
    for _ in range(int(concurrency.limit)):
        concurrency.succeeded()
    return concurrency.limit


def test_the_limit_doubles_until_the_first_rate_limit_then_grows_by_a_twentieth():
    concurrency = AdaptiveConcurrency(20, 100)
    assert [a_round(concurrency), a_round(concurrency)] == [40, 80]
    concurrency.rate_limited(now=100.0)
    assert concurrency.limit == 64
    assert a_round(concurrency) == pytest.approx(67.2)
    assert [a_round(concurrency) for _ in range(20)][-1] == 100


def test_an_episode_of_rate_limits_shrinks_the_limit_once():
    concurrency = AdaptiveConcurrency(20, 100)
    for now in (0.0, 1.0, 14.9, 15.0, 29.0):
        concurrency.rate_limited(now)
    assert concurrency.limit == pytest.approx(20 * 0.8 * 0.8)
    for episode in range(2, 100):
        concurrency.rate_limited(15.0 * episode)
    assert concurrency.limit == 1


def test_errors_start_the_round_again_and_do_not_shrink():
    concurrency = AdaptiveConcurrency(4, 100)
    for _ in range(10):
        for _ in range(3):
            concurrency.succeeded()
        concurrency.erred()
    assert concurrency.limit == 4
    assert a_round(concurrency) == 8


def test_calls_and_tokens_are_spread_over_the_minute():
    pace = Pace(60, float("inf"))
    assert [pace.reserve(1000, now=10.0) for _ in range(3)] == [0, 1, 2]
    pace = Pace(60, 6000)
    assert [pace.reserve(tokens, now=10.0) for tokens in (500, 10, 1)] == pytest.approx([0, 5, 6])
    assert pace.reserve(1, now=100.0) == 0


def test_pauses_are_drawn_between_zero_and_a_bound_that_doubles():
    for attempt, bound in {1: 2.0, 2: 4.0, 3: 8.0, 9: 60.0}.items():
        pauses = [backoff_s(attempt, 2.0, 60.0) for _ in range(300)]
        assert 0 <= min(pauses) < 0.1 * bound and 0.9 * bound < max(pauses) <= bound


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Sat, 28 Nov 2020 10:56:51 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_pause_that_a_server_asks_for(headers, seconds):
    assert retry_after_s(headers) == seconds


def test_a_server_may_ask_for_a_date():
    date = formatdate(time.time() + 100, usegmt=True)
    assert retry_after_s({"retry-after": date}) == pytest.approx(99.5, abs=3)


# Messages of servers as they are, shortened.
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, '{"error": {"code": "context_length_exceeded", "message": "Too long"}}', "overflow"),
        (400, '{"object": "error", "message": "This model\'s maximum context length is 6048 tokens."}', "overflow"),
        (400, '{"error": {"message": "max_tokens is too large: 99. The model supports at most 9."}}', "overflow"),
        (400, "{\"message\": \"'max_tokens' or 'max_completion_tokens' is too large: 32768.\"}", "overflow"),
        (400, '{"message": "The decoder prompt (length 9) is longer than the maximum model length of 8."}', "overflow"),
        (
            400,
            '{"message": "The input (61 tokens) is longer than the model\'s context length (40 tokens)."}',
            "overflow",
        ),
        (
            400,
            '{"error": {"type": "exceed_context_size_error", "message": "exceeds the available context size"}}',
            "overflow",
        ),
        (500, '{"error": {"message": "Requested tokens (2285) exceed context window of 2048"}}', "overflow"),
        (422, '{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."}', "overflow"),
        (404, '{"error": {"message": "model \\"x\\" not found, try pulling it first"}}', "model"),
        (400, '{"error": {"message": "invalid", "code": "model_not_found"}}', "model"),
        (404, "404 page not found", "url"),
        (307, "", "url"),
        (429, '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}', "access"),
        (429, '{"error": {"message": "Rate limit reached for tokens per min"}}', "rate_limit"),
        (402, '{"error": {"message": "Insufficient credits"}}', "access"),
        (503, "<html><h1>Service Unavailable</h1></html>", "server"),
        (408, "", "server"),
        (413, "", "rejected"),
        (422, '{"detail": [{"loc": ["body", "n"], "msg": "unexpected"}]}', "rejected"),
        (400, '{"error": {"message": "image context must not be empty"}}', "rejected"),
    ],
)
def test_errors_of_servers_have_reasons(status, body, reason):
    assert response_error(status, {}, body, str).reason is FailureReason(reason)


def test_error_messages_are_one_line_without_tags():
    error = response_error(503, {}, "<html>\n<h1>Service</h1>\n\nUnavailable" + " now" * 200 + "</html>", str)
    assert error.message.startswith("HTTP 503: Service Unavailable now") and len(error.message) < 450
    assert "\n" not in error.message and "<" not in error.message


def test_a_server_that_wants_another_name_of_the_token_limit_is_understood():
    body = '{"error": {"message": "Unsupported parameter: use \'max_completion_tokens\' instead."}}'
    assert "set token_limit_field=max_completion_tokens" in response_error(400, {}, body, str).message
