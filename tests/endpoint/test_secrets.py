"""The API key is in the header of calls and nowhere else."""

import logging

import pytest

from currreft_jax.endpoint import EndpointError, Failure, Reply, open_endpoint
from currreft_jax.endpoint.errors import parse_body
from currreft_jax.endpoint.reply import CallError
from currreft_jax.endpoint.settings import ApiKey
from tests.endpoint.test_client import always, answer
from tests.endpoint_stub import Fault, endpoint_stub, stub_settings, text_request

VARIABLE = "CURRREFT_STUB_KEY"
KEY = "sk-a/very+secret=key"


def outcomes_and_texts(settings, caplog, capfd):
    """All outcomes, and all texts that a run leaves: reprs, logs, output and the ledger."""
    texts = [repr(settings)]
    with caplog.at_level(logging.DEBUG), open_endpoint(settings) as endpoint:
        outcomes = list(endpoint.answers([text_request("one"), text_request("two")]))
        texts += [repr(endpoint), repr(vars(endpoint)), endpoint.summary(), *map(repr, outcomes)]
    texts += [caplog.text, *capfd.readouterr(), settings.ledger.read_text()]
    return outcomes, texts


def test_the_key_is_sent_and_never_shown_even_if_the_server_repeats_it(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")
    faults = {"one": Fault.KEY_IN_ANSWER, "two": Fault.NO_ACCESS}
    with endpoint_stub(lambda text, call: faults[text]) as stub:
        outcomes, texts = outcomes_and_texts(stub_settings(stub, tmp_path / "ledger.jsonl"), caplog, capfd)
    reply, failure = sorted(outcomes, key=lambda outcome: outcome.key)
    assert isinstance(reply, Reply) and reply.texts == ("Incorrect API key provided: Bearer [key].",)
    assert isinstance(failure, Failure) and "provided: Bearer [key]: set" in failure.message
    for text in texts:
        assert KEY not in text and "very+secret" not in text


def test_the_key_is_in_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    with endpoint_stub(always(Fault.NO_ACCESS)) as stub, pytest.raises(EndpointError) as caught:
        answer(stub_settings(stub, tmp_path / "ledger.jsonl"))
    error: BaseException | None = caught.value
    while error:
        assert KEY not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("form", ['{"error": {"message": "%s"}}', '{"error": "%s"}', "<p>%s</p>"])
@pytest.mark.parametrize("status", [200, 400])
def test_a_key_is_not_shown_in_part_where_a_message_is_cut(form, status, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    for length in range(370, 410):
        with pytest.raises(CallError) as caught:
            parse_body(status, {}, form % ("x" * length + KEY), ApiKey(VARIABLE).redact)
        assert KEY[:3] not in caught.value.message


def test_no_key_is_sent_without_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv(VARIABLE, raising=False)
    with endpoint_stub(always(Fault.KEY_IN_ANSWER)) as stub:
        reply = answer(stub_settings(stub, tmp_path / "ledger.jsonl"))
    assert isinstance(reply, Reply) and reply.texts == ("Incorrect API key provided: .",)


def test_a_short_key_is_no_secret_and_stays_in_answers(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "EMPTY")
    with endpoint_stub(answer_of=lambda text: "EMPTY") as stub:
        reply = answer(stub_settings(stub, tmp_path / "ledger.jsonl"))
    assert isinstance(reply, Reply) and reply.texts == ("EMPTY",)


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-ключ", "sk-a b"])
def test_a_key_that_is_none_is_refused_without_repeating_it(key, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, key)
    with endpoint_stub() as stub, pytest.raises(ValueError) as caught:
        answer(stub_settings(stub, tmp_path / "ledger.jsonl"))
    assert VARIABLE in str(caught.value) and "sk-" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://me:sk-secret@host/v1", "https://host/v1?key=sk-secret"])
def test_a_url_that_carries_a_key_is_refused_without_repeating_it(url, tmp_path):
    with endpoint_stub() as stub, pytest.raises(ValueError, match=r"endpoint\.url has a user, a password") as caught:
        answer(stub_settings(stub, tmp_path / "ledger.jsonl", url=url))
    assert "sk-secret" not in str(caught.value)


def test_the_ledger_is_readable_by_its_owner_alone(tmp_path):
    with endpoint_stub() as stub, open_endpoint(stub_settings(stub, tmp_path / "ledger.jsonl")):
        assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o077 == 0
