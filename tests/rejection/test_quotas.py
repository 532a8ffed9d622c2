"""How many rows are sampled: what the quota is expected to need, while answers are judged as they come."""

import random
from itertools import count
from types import SimpleNamespace

import pytest

from currreft_jax.judges import Judgement
from currreft_jax.rejection.quotas import QuotaProgress
from currreft_jax.rejection.records import AnswerGroup, SampledAnswer, answer_key, open_records
from currreft_jax.rejection.selection import KeepRule
from currreft_jax.structs import Completion
from tests.rejection.fakes import SCORES, FakeJudge, Ran, number_of, rejection_of, source_of

RULE = KeepRule(85.0, require_rules=True)


@pytest.fixture
def records(tmp_path):
    with open_records(tmp_path / "ledger.jsonl") as records:
        yield records


def waves_of(records, num_rows, quota, passes, rounds=1):
    """Sizes of the waves, by round, of rows of which those pass that the function says."""
    source = SimpleNamespace(
        settings=SimpleNamespace(name="s", quota=quota), places=dict.fromkeys(map(str, range(num_rows)))
    )
    progress, waves = QuotaProgress(source, rounds), []
    while rows := progress.next_rows(records):
        waves.append((progress.round_index, len(rows)))
        for row in rows:
            records.add_group("s", row, AnswerGroup(None, (SampledAnswer(Completion("text", 1), True),)))
            score = 90.0 if passes(int(row), progress.round_index) else 10.0
            records.add_judgement(Judgement(answer_key("s", row, progress.round_index), SCORES, score))
        progress.count(rows, records, RULE)
    return waves, progress


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.2, 0.05])
def test_no_more_rows_are_answered_than_the_quota_is_expected_to_need(records, share):
    rng = random.Random(0)
    accepted = [rng.random() < share for _ in range(2000)]
    waves, progress = waves_of(records, 2000, 40, lambda row, _: accepted[row])
    sizes = [size for _, size in waves]
    needed = next(n for n in count(40) if sum(accepted[:n]) == 40)
    assert progress.is_filled and sizes[0] == 40
    assert needed <= sum(sizes) <= 1.3 * needed
    for wave in range(1, len(sizes)):  # never more than the acceptance so far asks for
        before = sum(sizes[:wave])
        passed = sum(accepted[:before])
        assert passed == 0 or sizes[wave] <= -(-(40 - passed) * before // passed)


def test_rows_without_an_answer_to_keep_are_answered_again_in_waves_of_their_own(records):
    waves, progress = waves_of(records, 10, 9, lambda row, round_index: row <= 2 * round_index, rounds=4)
    assert [size for round_index, size in waves if round_index == 0] == [9, 1]
    assert sum(size for round_index, size in waves if round_index == 1) == 9
    assert len(progress.passed) == 7 and not progress.is_filled


def test_a_further_round_has_an_acceptance_of_its_own(records):
    """Half of the rows pass in the first round, every fifth of the others in the second."""
    waves, progress = waves_of(records, 40, 30, lambda row, index: row % 10 == 1 if index else row % 2 == 0, rounds=2)
    # Ten rows are missing after the first round; two of the next ten pass, and at their acceptance eight need all rows.
    assert waves == [(0, 30), (0, 10), (1, 10), (1, 10)] and len(progress.passed) == 24


def test_a_source_without_a_quota_is_answered_whole(records):
    waves, progress = waves_of(records, 7, 0, lambda row, round_index: row < 5 + round_index, rounds=2)
    assert waves == [(0, 7), (1, 2)] and not progress.is_filled


def test_rows_of_all_sources_are_answered_in_one_stream_that_is_judged_as_it_comes(tmp_path):
    asked: list[str] = []

    class Watching(FakeJudge):
        def judgement(self, answer):
            seen.append((len(asked), answer.key))
            return super().judgement(answer)

    def answer(row, sample):
        asked.append(row)
        return Completion(f"<think> {sample} </think> <answer> yes </answer>", 10)

    seen: list[tuple[int, str]] = []
    sources = [source_of(tmp_path, name, 30, 8, first_image=50 * index) for index, name in enumerate("ab")]
    score = lambda row, sample: 90.0 if number_of(row) % 2 else 50.0  # noqa: E731
    settings = rejection_of(*sources)
    settings.batch_size = 8  # the whole wave is one batch of the sampler
    ran = Ran(settings, tmp_path / "out", answer_of=answer, judge=Watching(score, ahead=3))
    assert asked[:32:2] == [row for row, _ in ran.answerer.asked[:16]]
    assert {row[0] for row in asked[:32]} == {"a", "b"}  # 8 rows of each in the first wave, two answers to a row
    assert seen[0][0] <= 6  # judged long before the wave is sampled
    assert sum(ran.files.shortfall.values()) == 0 and ran.files.num_kept == 16
