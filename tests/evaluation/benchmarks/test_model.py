"""Small suites of all benchmarks answered by a small model, from the published files to the table."""

import json

import pytest

from currreft_jax.config import BenchmarkName, CacheType, EvaluatedModel, Evaluation, Precision, Sampling
from currreft_jax.evaluation import runner
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.evaluation.benchmarks.scoring import read_verdicts, verdicts_path
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.summary import summary_table
from tests.evaluation.benchmarks.published import records_of, suite_of, write_benchmark


@pytest.mark.slow
def test_a_model_answers_all_benchmarks(checkpoint, tmp_path):
    evaluation = Evaluation(
        models=[EvaluatedModel(str(checkpoint), "tied")],
        suites=[suite_of(write_benchmark(tmp_path, name), name) for name in BenchmarkName],
        batch_size=8,
        sampling=Sampling(
            **{"group_size": 1, "temperature": 0.0, "max_new_tokens": 4, "segment": 4, "ladder": ()},
            **{"precision": Precision.FLOAT32, "cache": CacheType.FLOAT32, "prompt_lengths": (384,)},
        ),
    )
    files = runner.evaluate(evaluation, tmp_path / "out", lambda line: None)
    assert [file.suite for file in files] == [name.value for name in BenchmarkName]
    for name, file in zip(BenchmarkName, files, strict=True):
        answers = list(read_answers(file.path))
        assert len(answers) == len(records_of(name)) and all(answer.completions for answer in answers)
        assert all(bool(answer.image) == (name is not BenchmarkName.MATH) for answer in answers)
        scores = read_verdicts(verdicts_path(file.path)).scores
        assert scores[0].failed == 0 and scores[0].units == (3 if name is BenchmarkName.MMBENCH else len(answers))
        manifest = json.loads(manifest_path(file.path).read_text())
        assert manifest["pixels"]["max"] and manifest["decoding"]["max_new_tokens"] == 4
    assert summary_table(files).count("overall") == len(files)
