"""Jobs whose judge, or whose model, is at a server: faults, budget, distillation, no secret in any file."""

import json
from contextlib import nullcontext

import pytest

from currreft_jax.config import EndpointLimits, EvaluatedModel
from currreft_jax.endpoint import EndpointError
from currreft_jax.rejection import runner
from tests.endpoint_stub import MODEL, endpoint_stub
from tests.judges.helpers import KEY_VARIABLE, conversation_text, fenced_texts, judge_settings, scores_json
from tests.rejection.fakes import FakeJudge, rejection_of, source_of
from tests.rejection.served import fault_of, judge_reply, run_served

SECRET = "secret-key-0123456789"


def content_of(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def test_every_answer_is_judged_or_rejected_with_its_reason_by_a_judge_that_misbehaves(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    lines: list[str] = []
    with endpoint_stub(fault_of, judge_reply, text_of=conversation_text) as stub:
        settings = rejection_of(source_of(tmp_path, "s", 36, 12), judge=judge_settings(stub))
        files = run_served(settings, tmp_path / "out", lines)
        calls = len(stub.calls)
        run_served(settings, tmp_path / "out", lines)
        assert len(stub.calls) == calls  # nothing is judged twice
    summary = json.loads(files.summary.read_text())
    answers = summary["answers"]
    assert {"unreadable", "inconsistent", "refused", "failed", "below_threshold", "kept"} <= answers.keys()
    assert sum(count for reason, count in answers.items() if reason != "sampled") == answers["sampled"]
    assert summary["judge"]["model"] == MODEL and summary["histogram"]
    assert all(json.loads(line)["judge"]["overall"] > 85 for line in files.kept.read_text().splitlines())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert not any(SECRET in line for line in lines)


def test_a_budget_stops_the_job_before_it_is_passed_and_a_larger_one_continues(tmp_path):
    lines: list[str] = []
    with endpoint_stub(answer_of=judge_reply, text_of=conversation_text) as stub:
        settings = rejection_of(source_of(tmp_path, "s", 18, 6), judge=judge_settings(stub, max_calls=9))
        with pytest.raises(EndpointError, match=r"no judgement yet(.|\n)*budget"):
            run_served(settings, tmp_path / "part", lines)
        assert len(stub.calls) == 9 and not (tmp_path / "part" / "kept.jsonl").exists()
        settings.judge.endpoint.max_calls = None
        run_served(settings, tmp_path / "part", lines)
        run_served(settings, tmp_path / "whole", lines)
    names = ("kept.jsonl", "held_out.jsonl")  # how many further answers were sampled depends on the speed of the judge
    assert content_of(tmp_path / "part", *names) == content_of(tmp_path / "whole", *names)


def test_the_budget_is_that_of_the_model_and_both_judges_over_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MathsPool", lambda _: nullcontext())
    answer, scores = "<think> t </think> <answer> yes </answer>", scores_json(90, 90, 90, 90)
    lines: list[str] = []
    with endpoint_stub(
        answer_of=lambda text: scores if fenced_texts(text) else answer, text_of=conversation_text
    ) as stub:
        limits = EndpointLimits(attempts=2, backoff_s=0.002, key_variable="NO_SUCH_KEY")
        settings = rejection_of(
            *[source_of(tmp_path, "s", 9)],
            **{"model": EvaluatedModel(MODEL, "served", stub.url), "endpoint": limits, "max_samples": 2},
            **{"judge": judge_settings(stub), "second_judge": judge_settings(stub), "second_share": 1.0},
        )
        runner.reject(settings, tmp_path / "whole", print)
        whole = len(stub.calls)
        assert whole == 27  # a call of the model for each row, and of each judge for its two equal answers
        for budget in (4, 12, 20, 26):  # within the model's calls and those of each judge
            settings.budget = budget
            with pytest.raises(EndpointError, match=f"the job's budget of {budget} calls is spent: raise budget"):
                runner.reject(settings, tmp_path / "part", lines.append)
            assert len(stub.calls) - whole == budget and not (tmp_path / "part" / "kept.jsonl").exists()
        settings.budget = whole
        runner.reject(settings, tmp_path / "part", lines.append)
        assert len(stub.calls) - whole == whole  # no call was cut off and made again
        assert f"{whole} of {whole} calls of the budget are spent" in lines
    names = ("kept.jsonl", "disagreements.jsonl")
    assert content_of(tmp_path / "part", *names) == content_of(tmp_path / "whole", *names)


def test_a_server_answers_each_round_with_other_seeds_and_that_is_distillation(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "MathsPool", lambda _: nullcontext())
    limits = EndpointLimits(attempts=2, backoff_s=0.002, key_variable="NO_SUCH_KEY")
    with endpoint_stub(answer_of=lambda text: "<think> t </think> <answer> yes </answer>") as stub:
        model = EvaluatedModel(MODEL, "served", stub.url)
        settings = rejection_of(source_of(tmp_path, "s", 4), model=model, endpoint=limits, max_samples=4)
        judge = FakeJudge(lambda row, sample: 90.0 if sample >= 2 else 10.0)
        files = runner.reject(settings, tmp_path / "out", print, open_judge=lambda *_, **__: judge)
        assert sorted(call.body["seed"] for call in stub.calls) == [0] * 4 + [2] * 4
        assert {call.body["n"] for call in stub.calls} == {2}
    rows = [json.loads(line)["provenance"] for line in files.kept.read_text().splitlines()]
    assert len(rows) == 4 and all(row["distilled"] and row["generator"]["endpoint"] == stub.url for row in rows)
    assert {row["sample"] for row in rows} == {2}
