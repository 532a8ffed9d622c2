"""Jobs without a model: quotas, further rounds, files that training reads, stops and what is refused."""

import json
import os
from dataclasses import replace

import pytest

from currreft_jax.config import (
    EvaluatedModel,
    Judge,
    JudgeKind,
    QuotaSource,
    Source,
    Suite,
    as_evaluation,
    source_suites,
)
from currreft_jax.data.prompts import load_template, question_messages
from currreft_jax.data.row_files import RowFile
from currreft_jax.endpoint import EndpointError
from currreft_jax.evaluation.suites import load_suites
from currreft_jax.judges import Unjudged
from currreft_jax.rejection import answering
from currreft_jax.rejection.kept_rows import split_held_out
from currreft_jax.rejection.runner import replay
from currreft_jax.rejection.summary import summary_tables
from currreft_jax.structs import Completion, Frame
from tests import tiny
from tests.rejection.fakes import (
    CalibratedJudge,
    FakeAnswerer,
    FakeJudge,
    Ran,
    number_of,
    rejection_of,
    right_answer,
    source_of,
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept_rows(ran):
    return [row["provenance"]["row"] for row in lines(ran.files.kept)]


def test_sampling_stops_when_the_quota_is_filled(tmp_path):
    ran = Ran(rejection_of(source_of(tmp_path, "s", 40, 5)), tmp_path / "out", ahead=0)
    assert ran.files.num_kept == 5 and not ran.files.shortfall
    assert len({row for row, _ in ran.answerer.asked}) == len(ran.answerer.asked) == 5  # all of them pass
    assert len(set(ran.answerer.checked)) == 40  # a prompt that is too long is refused before the first answer
    other = Ran(replace(rejection_of(*rejection_of(source_of(tmp_path, "s", 40, 5)).sources), seed=1), tmp_path / "1")
    assert kept_rows(other) != kept_rows(ran)  # the order of rows is seeded


def test_rows_without_a_kept_answer_are_sampled_again_with_other_samples_and_the_rest_is_told(tmp_path):
    def score(row, sample):  # the higher a row's number, the later its first good sample; some have none
        return 90.0 if sample >= number_of(row) else 50.0

    ran = Ran(rejection_of(source_of(tmp_path, "s", 8, 7)), tmp_path / "out", score)
    firsts = {row: [first for asked, first in ran.answerer.asked if asked == row] for row, _ in ran.answerer.asked}
    assert firsts["s-0"] == firsts["s-1"] == [0] and firsts["s-3"] == [0, 2] and firsts["s-7"] == [0, 2, 4]
    assert sorted(map(number_of, kept_rows(ran))) == [0, 1, 2, 3, 4, 5]
    assert ran.files.shortfall == {"s": 1}
    assert any("s: 6 of 7 rows kept, 1 short after 6 answers to a row" in line for line in ran.lines)
    samples = {row["provenance"]["row"]: row["provenance"]["sample"] for row in lines(ran.files.kept)}
    assert samples == {f"s-{number}": number for number in range(6)}


def test_each_source_has_its_quota_and_groups_are_summed(tmp_path):
    quotas = {"a": 2, "b": 4, "c": 0}
    sources = [source_of(tmp_path, name, 6, quotas[name], first_image=10 * index) for index, name in enumerate(quotas)]
    for source in sources[:2]:
        source.group = "maths"
    score = {"a": 90.0, "b": 10.0, "c": 99.0}
    ran = Ran(rejection_of(*sources), tmp_path / "out", lambda row, sample: score[row[0]])
    summary = json.loads(ran.files.summary.read_text())
    assert {one["source"]: (one["kept"], one["shortfall"]) for one in summary["sources"]} == {
        "a": (2, 0),
        "b": (0, 4),
        "c": (6, 0),
    }
    (maths,) = summary["groups"]
    assert (maths["kept"], maths["quota"], maths["shortfall"]) == (2, 6, 4)
    assert ran.files.shortfall == {"b": 4}


@pytest.fixture
def kinds(tmp_path):
    """A source of each kind of row, with and without images, and one of a conversation."""
    tiny.picture(40, 30, seed=9).save(tmp_path / "chat.png")
    chat = [
        {"role": "user", "content": "what is <image>this?"},
        {"role": "assistant", "content": "a picture"},
        {"role": "user", "content": "really?"},
        {"role": "assistant", "content": "yes"},
    ]
    rows = [
        {"task": "math", "kind": "judge", "problem": "is it 2?", "solution": "yes", "image": "chat.png"},
        {"task": "math", "kind": "choice", "problem": "which?", "solution": "A", "options": ["one", "two"]},
        {"task": "math", "kind": "open", "problem": "how many?", "solution": 2, "image": "chat.png"},
        {
            **{"task": "detection", "kind": "judge", "problem": "a cat in {box:0}?", "solution": "yes"},
            **{"image": "chat.png", "boxes": [[4, 4, 20, 20]]},
        },
        {"task": "other", "kind": "chat", "messages": chat, "image": "chat.png"},
        {"task": "other", "kind": "chat", "messages": [*chat[2:3], chat[1]]},
    ]
    (tmp_path / "kinds.jsonl").write_text(
        "".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows))
    )
    return tmp_path / "kinds.jsonl"


def test_kept_rows_are_trained_on_as_they_were_asked(kinds, tmp_path):
    settings = rejection_of(
        QuotaSource("kinds", Source(str(kinds))),
        judge=Judge(JudgeKind.ENDPOINT, "judge", "http://localhost:1/v1"),
        require_rules=False,
    )
    ran = Ran(settings, tmp_path / "out")
    assert ran.files.num_kept == 6
    with RowFile(kinds) as asked, RowFile(ran.files.kept) as kept:
        by_id = {asked[index].id: asked[index] for index in range(6)}
        frame = [(Frame(40, 30), Frame(40, 30))]
        for index in range(6):
            row = kept[index]
            original = by_id[row.id.removeprefix("kinds/")]
            template, frames = load_template("paper"), frame * len(original.images)
            as_asked, as_trained = (question_messages(one, template, frames) for one in (original, row))
            assert as_trained == as_asked
            assert row.messages[-1].text.startswith("<think>")
            assert [*map(os.path.normpath, row.images)] == [*original.images]
    lines_by_row = {line["provenance"]["row"]: line for line in lines(ran.files.kept)}
    assert lines_by_row["4"]["provenance"]["right_by_rules"] is None  # no rule scores a conversation


def test_the_provenance_of_a_row_says_who_answered_and_who_judged(tmp_path):
    (row,) = lines(Ran(rejection_of(source_of(tmp_path, "s", 1)), tmp_path / "out").files.kept)
    facts, judge = row["provenance"], row["judge"]
    assert facts["generator"]["name"] == "a" and facts["distilled"] is False and facts["seed"] == 0
    assert facts["sample"] == 0 and facts["tokens"] == 10 and facts["template"]["template"] == "paper"
    assert facts["right_by_rules"] is True and facts["location"].endswith("s.jsonl:1")
    assert judge["overall"] == 90.0 and judge["accuracy"] == 90.0 and judge["reply"] == "raw reply"
    assert judge["model"] == "fake" and judge["prompt_version"] == "fake-1" and judge["rationale"] == "good"


def test_every_kept_row_has_its_own_answer_score_image_and_place(tmp_path):
    def answer(row, sample):
        return Completion(f"<think> {row} {sample} </think> <answer> yes </answer>", 10)

    def score(row, sample):
        return 80.0 + number_of(row) + sample / 10

    sources = [source_of(tmp_path, name, 12, images=12, first_image=20 * index) for index, name in enumerate("st")]
    ran = Ran(rejection_of(*sources), tmp_path / "out", score, answer)
    kept = lines(ran.files.kept)
    assert len(kept) == 14  # rows 5 to 11 of both sources
    for row in kept:
        facts, number = row["provenance"], number_of(row["provenance"]["row"])
        assert row["id"] == f"{row['source']}/{facts['row']}"
        assert facts["location"].endswith(f"{row['source']}.jsonl:{number + 1}") and facts["sample"] == 1
        assert row["messages"][-1]["content"] == answer(facts["row"], facts["sample"]).text
        assert row["judge"]["overall"] == score(facts["row"], facts["sample"])
        assert row["images"] == [f"../{row['source']}-{number + (20 if row['source'] == 't' else 0)}.png"]


def test_the_other_hosts_sample_the_batches_of_the_first(tmp_path, monkeypatch):
    sent: list[bytes] = []
    monkeypatch.setattr(answering, "gather_bytes", lambda content: sent.append(content) or [content])
    settings = rejection_of(source_of(tmp_path, "s", 9, 6), source_of(tmp_path, "t", 5, first_image=9))
    ran = Ran(settings, tmp_path / "out", uneven_score)
    received, (suites, _) = iter(sent), load_suites(as_evaluation(settings, source_suites(settings)))
    monkeypatch.setattr(answering, "gather_bytes", lambda content: [next(received)])
    along = FakeAnswerer(settings.sampling.group_size)
    answering.sample_along(suites, along, settings.sampling.group_size)
    assert along.asked == ran.answerer.asked and {first for _, first in along.asked} == {0, 2, 4}
    assert not list(received)


def test_answers_of_a_server_are_called_distillation(tmp_path):
    model = EvaluatedModel("gpt", endpoint="http://localhost:1/v1")
    ran = Ran(rejection_of(source_of(tmp_path, "s", 2), model=model), tmp_path / "out")
    assert all(row["provenance"]["distilled"] for row in lines(ran.files.kept))
    assert json.loads(ran.files.summary.read_text())["distilled"] is True


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (Completion("<think> t </think> <answer> yes", finished=False), "truncated"),
        (Completion(" "), "empty"),
        (Completion("<answer> yes <image> </answer>"), "unreadable_as_row"),
        (Completion("<answer> yes {box:3} </answer>"), "unreadable_as_row"),
        ("overflow: too long", ""),
    ],
)
def test_answers_that_cannot_be_kept_are_not_judged_but_counted(tmp_path, completion, reason):
    answer_of = lambda row, sample: completion if row == "s-0" else right_answer(row, sample)  # noqa: E731
    ran = Ran(rejection_of(source_of(tmp_path, "s", 2)), tmp_path / "out", answer_of=answer_of)
    assert kept_rows(ran) == ["s-1"] and all("s-1" in key for key in ran.judge.judged)
    summary = json.loads(ran.files.summary.read_text())
    if reason:
        assert summary["answers"][reason] == 6
    else:
        assert summary["sources"][0]["failures"] == {"overflow": 1}
        assert [row for row, _ in ran.answerer.asked].count("s-0") == 1  # not asked again


def test_held_out_rows_are_a_share_and_share_no_image_with_the_others(tmp_path):
    source = source_of(tmp_path, "s", 40, images=10)
    ran = Ran(rejection_of(source, held_out=0.2), tmp_path / "out")
    assert (ran.files.num_kept, ran.files.num_held_out) == (32, 8) and ran.files.held_out
    train, held_out = ({row["images"][0] for row in lines(path)} for path in (ran.files.kept, ran.files.held_out))
    assert not train & held_out


def test_held_out_rows_of_several_images_share_none_with_the_others(tmp_path):
    source = source_of(tmp_path, "s", 12, images=12)
    rows = lines(tmp_path / "s.jsonl")
    for earlier, row in zip(rows[::2], rows[1::2], strict=True):  # each second row has the image before its own, too
        row["images"] = [row.pop("image"), earlier["image"]]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = Ran(rejection_of(source, held_out=0.5), tmp_path / "out")
    paths = ran.files.kept, ran.files.held_out
    train, held_out = ({image for row in lines(path) for image in row["images"]} for path in paths if path)
    assert (ran.files.num_kept, ran.files.num_held_out) == (6, 6) and not train & held_out


def test_the_share_of_held_out_rows_is_rounded_up_and_its_rows_depend_on_the_seed():
    rows = [([f"image {number}"], number) for number in range(40)]
    train, held_out = split_held_out(rows, 0.01, seed=0)
    assert len(held_out) == 1 and sorted(train + held_out) == list(range(40))
    chosen = [split_held_out(rows, 0.25, seed)[1] for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2] and [len(one) for one in chosen] == [10] * 3
    assert split_held_out(rows, 0.0, seed=0)[1] == split_held_out([(["a"], 0), (["a"], 1)], 0.5, seed=0)[1] == []
    both = [([f"early {number}", f"image {number}"][:: -1 if number % 2 else 1], number) for number in range(40)]
    train, held_out = split_held_out([*rows, *both], 0.5, seed=0)  # a row of one image, and a row of it and another
    assert len(held_out) == 40 and not set(train) & set(held_out)


def test_rows_of_an_evaluation_suite_are_dropped_and_the_manifest_says_what_was_compared(tmp_path):
    test = source_of(tmp_path / "test", "t", 2, images=2)  # the pixels of the source's images 0 and 1
    source = source_of(tmp_path / "train", "s", 8, images=4)
    settings = rejection_of(source, suites=[Suite("tests", [Source(test.source.file)])])
    ran = Ran(settings, tmp_path / "out")
    assert sorted(map(number_of, kept_rows(ran))) == [2, 3, 6, 7]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["leaks"]
    assert manifest["suites"] == {"tests": {"rows": 2, "images": 2, "questions_without_images": 0}}
    assert manifest["dropped"]["s"]["leaked_image of tests"] == 4 and len(manifest["dropped"]["s"]["first"]) == 4
    assert any("s: 4 of 8 rows are left out: leaked_image of tests 4" in line for line in ran.lines)


def test_rows_that_no_rule_checks_are_left_out_with_a_remedy(tmp_path):
    other = source_of(tmp_path, "t", 2, kind="open", task="other", first_image=7)
    settings = rejection_of(source_of(tmp_path, "s", 2), other)
    with pytest.raises(ValueError, match=r"source t: no row is left; .*no_rule: rows of kind chat, .* --judge=NAME"):
        Ran(settings, tmp_path / "out")
    settings.rewards.weights["examples.gauge.reward:within_tolerance"] = 1.0
    kept = lines(Ran(settings, tmp_path / "own").files.kept)
    assert {row["provenance"]["row"][0]: row["provenance"]["right_by_rules"] for row in kept} == {"s": True, "t": None}


class Stop(Exception):
    pass


def stopping(function, after):
    """Makes the function raise at its call of this number."""
    calls = iter(range(10**9))

    def wrapped(row, sample):
        if next(calls) == after:
            raise Stop
        return function(row, sample)

    return wrapped


def uneven_score(row, sample):
    return (number_of(row) * 7 + sample) % 11 * 9.0


@pytest.mark.parametrize("stop_answers", [True, False])
@pytest.mark.parametrize("after", [0, 1, 5, 11, 20, 29])
def test_a_job_that_was_stopped_ends_with_the_same_files_and_repeats_nothing(tmp_path, after, stop_answers):
    settings = rejection_of(
        source_of(tmp_path, "s", 20, 6), source_of(tmp_path, "t", 5, 5, first_image=9), held_out=0.3
    )
    whole = Ran(settings, tmp_path / "whole", uneven_score)
    with pytest.raises(Stop):
        if stop_answers:
            Ran(settings, tmp_path / "part", uneven_score, stopping(right_answer, after))
        else:
            Ran(settings, tmp_path / "part", stopping(uneven_score, after))
    before = (tmp_path / "part" / "ledger.jsonl").read_bytes()
    rest = Ran(settings, tmp_path / "part", uneven_score)
    for name in ("kept.jsonl", "held_out.jsonl", "summary.json"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(set(rest.judge.judged)) == len(rest.judge.judged)
    recorded = {json.loads(line).get("key") for line in before.splitlines()}
    assert not recorded & set(rest.judge.judged)
    again = Ran(settings, tmp_path / "part", uneven_score)
    assert not again.judge.judged and not again.answerer.asked
    assert whole.files.num_kept == again.files.num_kept


@pytest.mark.parametrize("kept_share", [0.2, 0.5, 0.9])
def test_a_ledger_that_was_cut_anywhere_is_continued(tmp_path, kept_share):
    settings = rejection_of(source_of(tmp_path, "s", 20, 6))
    Ran(settings, tmp_path / "whole", uneven_score)
    Ran(settings, tmp_path / "part", uneven_score)
    ledger = tmp_path / "part" / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: int(len(content) * kept_share)])
    ran = Ran(settings, tmp_path / "part", uneven_score)
    assert any("dropped" in line for line in ran.lines)
    assert (tmp_path / "part" / "kept.jsonl").read_bytes() == (tmp_path / "whole" / "kept.jsonl").read_bytes()


def test_a_judge_that_cannot_be_asked_stops_the_job_and_is_asked_again(tmp_path):
    settings = rejection_of(source_of(tmp_path, "s", 30, 10))
    failing = lambda row, sample: None if number_of(row) == 7 else 90.0  # noqa: E731
    with pytest.raises(EndpointError, match="answers have no judgement yet"):
        Ran(settings, tmp_path / "part", failing)
    assert not (tmp_path / "part" / "kept.jsonl").exists()
    ran = Ran(settings, tmp_path / "part")
    Ran(settings, tmp_path / "whole")
    assert (tmp_path / "part" / "kept.jsonl").read_bytes() == (tmp_path / "whole" / "kept.jsonl").read_bytes()
    assert ran.judge.judged[0].startswith("s/s-7/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: setattr(settings, "seed", 1), "decoding.seed was 0, and is 1"),
        (lambda settings: setattr(settings.sampling, "temperature", 0.5), "decoding.temperature was 1.0, and is 0.5"),
        (lambda settings: setattr(settings.rewards, "tau", 0.7), "rules.tau was 0.5, and is 0.7"),
        (lambda settings: setattr(settings, "template", "world"), "prompts.hash was"),
        (lambda settings: setattr(settings.sources[0].source, "sample", "first:3"), r"sources.s.count was 4, and is 3"),
    ],
)
def test_answers_of_other_settings_are_not_continued(tmp_path, change, message):
    settings = rejection_of(source_of(tmp_path, "s", 4))
    Ran(settings, tmp_path / "out")
    change(settings)
    with pytest.raises(ValueError, match=f"manifest.json: .*{message}.*write to another --out"):
        Ran(settings, tmp_path / "out")


@pytest.mark.parametrize("threshold", [30.0, 60.0, 89.0])
def test_another_threshold_continues_to_what_it_would_have_kept_alone(tmp_path, threshold):
    settings = rejection_of(source_of(tmp_path, "s", 20, 6))
    Ran(settings, tmp_path / "both", uneven_score)
    settings.threshold = threshold
    for name in ("both", "alone"):
        Ran(settings, tmp_path / name, uneven_score)
    assert (tmp_path / "both" / "kept.jsonl").read_bytes() == (tmp_path / "alone" / "kept.jsonl").read_bytes()


def test_a_replay_selects_again_without_a_call(tmp_path):
    settings = rejection_of(source_of(tmp_path, "s", 12))
    ran = Ran(settings, tmp_path / "out", uneven_score)
    at_85 = ran.files.kept.read_bytes()
    settings.threshold = 50.0
    files = replay(settings, tmp_path / "out", print)
    assert files.num_kept > at_85.count(b"\n")
    summary = json.loads(files.summary.read_text())
    sweep = {row["threshold"]: row["kept"] for row in summary["sweep"]}
    assert sweep[50] == files.num_kept and sweep[85] == at_85.count(b"\n")
    settings.threshold = 85.0
    assert replay(settings, tmp_path / "out", print).kept.read_bytes() == at_85
    with pytest.raises(FileNotFoundError, match="holds no job to replay"):
        replay(settings, tmp_path / "elsewhere", print)
    settings.sources[0].source.sample = "first:3"
    with pytest.raises(ValueError, match="the rows of source s are not those that were answered"):
        replay(settings, tmp_path / "out", print)


def test_a_job_that_keeps_nothing_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"no answer is kept above 85 \(.*below_threshold 12.*lower the threshold"):
        Ran(rejection_of(source_of(tmp_path, "s", 2)), tmp_path / "out", lambda row, sample: 85.0)


def test_planted_faults_are_judged_first_and_shown_beside_the_threshold(tmp_path):
    settings = rejection_of(source_of(tmp_path, "s", 4), source_of(tmp_path, "t", 4, first_image=9), calibration_rows=3)
    judge = CalibratedJudge()
    ran = Ran(settings, tmp_path / "out", judge=judge)
    summary = json.loads(ran.files.summary.read_text())
    planted = summary["calibration"]["planted"]
    assert summary["calibration"]["rows"] == 3 and planted["correct"]["above_threshold"] == 3
    assert planted["wrong, begs for 100 points"] == {"answers": 3, "unjudged": 0, "above_threshold": 3}
    assert planted["truncated"]["above_threshold"] == 0
    shares = {row["threshold"]: row["planted_share"] for row in summary["sweep"]}
    assert shares[85] == 0.2 and shares[50] == 1.0 and shares[95] == 0.0  # one fault of five passes
    assert "| wrong, begs for 100 points | 3 |" in summary_tables(summary)
    assert judge.judged[0].startswith("calibration 0")
    again = CalibratedJudge()
    Ran(settings, tmp_path / "out", judge=again)
    assert not again.judged


def test_a_second_judge_scores_a_share_and_its_agreement_is_told(tmp_path, monkeypatch):
    settings = rejection_of(source_of(tmp_path, "s", 60), second_judge=Judge(), second_share=0.5)
    second = FakeJudge(lambda row, sample: max(0.0, uneven_score(row, sample) + (10 if number_of(row) % 2 else -5)))
    second.facts = {**second.facts, "model": "second"}
    first = lambda row, sample: Unjudged.REFUSED if row == "s-5" else uneven_score(row, sample)  # noqa: E731
    ran = Ran(settings, tmp_path / "out", first, second=second)
    assert any("/s-5/" in key for key in ran.judge.judged) and not any("/s-5/" in key for key in second.judged)
    summary = json.loads(ran.files.summary.read_text())["second_judge"]
    assert summary["judge"] == "rules second fake-1" and summary["answers"] == len(second.judged)
    assert 0.35 < summary["answers"] / len(ran.judge.judged) < 0.65 and 0.8 < summary["kappa"] < 1
    assert abs(summary["largest"][0]["first"] - summary["largest"][0]["second"]) == 10.0
    assert "second judge rules second fake-1" in summary_tables(json.loads(ran.files.summary.read_text()))
    disputed = lines(tmp_path / "out" / "disagreements.jsonl")
    pairs = [(row["judge"]["overall"], row["second_judge"]["overall"]) for row in disputed]
    assert {two - one for one, two in pairs} == {10, -5}
    places = [((one > 85) == (two > 85), -abs(one - two)) for one, two in pairs]
    assert places == sorted(places) and {same_side for same_side, _ in places} == {False, True}
    row = disputed[0]
    assert row["second_judge"]["name"] == "rules second fake-1" and row["second_judge"]["accuracy"] == 90.0
    assert f"s/{row['provenance']['row']}/{row['provenance']['sample']}" in second.judged
    assert row["messages"][-1]["content"] == right_answer("", row["provenance"]["sample"]).text and row["images"]
    again = FakeJudge(lambda row, sample: 0.0)
    again.facts = second.facts
    Ran(settings, tmp_path / "out", uneven_score, second=again)
    assert not again.judged
    other = FakeJudge(lambda row, sample: 0.0)
    Ran(replace(settings, seed=1), tmp_path / "other", uneven_score, second=other)
    assert set(other.judged) != set(second.judged)  # the share is drawn by the seed
    replay(settings, tmp_path / "out", print)
    assert json.loads(ran.files.summary.read_text())["second_judge"] == summary


def test_the_judge_is_compared_with_the_rules(tmp_path):
    def answer(row, sample):  # the second answer is wrong, and the judge loves it
        return Completion(f"<think> t </think> <answer> {'no' if sample % 2 else 'yes'} </answer>", 10)

    settings = rejection_of(source_of(tmp_path, "s", 3), max_samples=2)
    ran = Ran(settings, tmp_path / "out", lambda row, sample: 100.0 if sample else 80.0 + number_of(row) * 5, answer)
    summary = json.loads(ran.files.summary.read_text())
    wanted = {"checked": 6, "above_right": 1, "above_wrong": 3, "below_right": 2, "below_wrong": 0}
    assert summary["judge_against_rules"] == wanted
    assert kept_rows(ran) == ["s-2"] and summary["answers"]["wrong_by_rules"] == 3
    sweep = {row["threshold"]: row for row in summary["sweep"]}
    assert sweep[85]["wrong_share"] == 1.0 and sweep[85]["kept"] == 1 and sweep[75]["kept"] == 3
    assert summary["histogram"] == {"80-85": 1, "85-90": 1, "90-95": 1, "95-100": 3}


def test_a_batch_that_was_half_recorded_is_sampled_whole_and_its_rest_recorded(tmp_path):
    """An answer comes out of the same batch as without the stop: rounding differs between batches."""
    settings = rejection_of(source_of(tmp_path, "s", 6), max_samples=2)
    whole = Ran(settings, tmp_path / "out")
    ledger = tmp_path / "out" / "ledger.jsonl"
    opened, first, *_ = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(opened + first)
    rest = Ran(settings, tmp_path / "out")
    assert rest.answerer.asked == whole.answerer.asked
    groups = [event["row"] for event in lines(ledger) if event["event"] == "answers"]
    assert sorted(groups) == sorted(f"s-{index}" for index in range(6))
