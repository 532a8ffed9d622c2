"""Two processes sample and keep the same answers as one."""

from dataclasses import replace
from pathlib import Path

import pytest

from currreft_jax.config import CacheType, EvaluatedModel, Maths, Precision, QuotaSource, Rejection, Rewards, Sampling
from currreft_jax.evaluation.answerers import ModelAnswerer
from currreft_jax.rejection import runner
from tests.rejection.fakes import FakeJudge, source_of
from tests.test_processes import START, run_two_processes

NAMES = ("kept.jsonl", "held_out.jsonl")


def settings_of(checkpoint, folder: Path) -> Rejection:
    """Ten rows of two sources, some with images, in eight slots; quotas that take several waves and rounds."""
    sources = [
        source_of(folder, name, count, quota, images=images, first_image=20 * images, kind="judge", solution="yes")
        for name, count, quota, images in (("seen", 6, 4, 2), ("text", 4, 3, 0))
    ]
    return Rejection(
        model=EvaluatedModel(str(checkpoint), "tied"),
        sources=[QuotaSource(source.name, source.source, source.quota) for source in sources],
        rewards=Rewards(maths=Maths(workers=1)),
        **{"require_rules": False, "calibration_rows": 0, "max_samples": 6, "held_out": 0.2},
        **{"template": "world", "batch_size": 6},
        sampling=Sampling(
            group_size=2,
            max_new_tokens=4,
            segment=4,
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
            prompt_lengths=(128,),
        ),
    )


class Finished(ModelAnswerer):
    """Calls completions finished, which those of a random model never are."""

    def answers(self, questions):
        for number, reply in super().answers(questions):
            yield number, reply._replace(completions=tuple(replace(c, finished=True) for c in reply.completions))


def run(settings: Rejection, out: Path) -> str:
    """Runs a job whose judge keeps a third of the answers; returns the kept rows."""
    judge = FakeJudge(lambda row, sample: 90.0 if (len(row) + ord(row[-1]) + sample) % 3 == 0 else 50.0)
    runner.reject(
        settings,
        out,
        lambda line: None,
        lambda model, evaluation, *_: Finished(model, evaluation),
        lambda *_, **__: judge,
    )
    return "".join((out / name).read_text() for name in NAMES)  # there when any process returns


PROGRAM = (
    START
    + """
from tests.rejection.test_processes import run, settings_of
kept = run(settings_of(source, Path(out).parent / f"rows-{process}"), Path(out))
if process == 0:
    print(json.dumps(kept))
"""
)


@pytest.mark.slow
def test_two_processes_keep_the_rows_that_one_keeps(checkpoint, tmp_path):
    one = run(settings_of(checkpoint, tmp_path / "rows-0"), tmp_path / "one")
    assert one.count("\n") == 7
    two = str(run_two_processes(checkpoint, tmp_path / "two", PROGRAM))
    assert two == one
