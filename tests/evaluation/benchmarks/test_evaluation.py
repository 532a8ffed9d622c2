"""Small suites of all benchmarks end to end, with an answerer that knows its answers, and a judge at a local server."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from currreft_jax.config import BenchmarkName, EvaluatedModel, Evaluation, Extraction, Judge, JudgeKind
from currreft_jax.evaluation import runner
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.evaluation.benchmarks.files import PUBLISHED
from currreft_jax.evaluation.benchmarks.scoring import read_verdicts, verdicts_path
from currreft_jax.evaluation.compare import compare_models, read_model_answers
from currreft_jax.evaluation.comparison_tables import format_comparison, write_comparison_csv
from currreft_jax.evaluation.manifest import manifest_path
from currreft_jax.evaluation.suites import SuiteReply
from currreft_jax.evaluation.summary import summary_table
from currreft_jax.report.answer_pairs import pairs_json
from currreft_jax.report.comparisons import EvaluatedModels, comparison_record
from currreft_jax.structs import Completion, Frame
from tests.endpoint_stub import MODEL, endpoint_stub, last_text
from tests.evaluation.benchmarks.published import suite_of, write_benchmark
from tests.evaluation.suites import Echo

# By suite: the answers in the order of the rows; a failure is a pair.
ANSWERS = {
    # Question 0 is right in all rotations, 1 is undecided twice and wrong once, 2 is undecided once.
    BenchmarkName.MMBENCH: [
        *("B", "A", "D", "C"),
        *("the one that lays eggs", "B", "cat", "no idea"),
        *("A", "obviously it is light"),
    ],
    BenchmarkName.AI2D: ["B", "<think> B </think> <answer> C </answer>", "unclear"],
    BenchmarkName.MATHVISTA: ["The answer is (B).", "fourteen, I think", "1.24"],
    BenchmarkName.OCRBENCH: ["It says: center", "x^2"],
    BenchmarkName.MMVET: ["x is -1", "a jar"],
    BenchmarkName.LLAVABENCH: ["A house.", "A boat.", ("overflow: too long",)],
    BenchmarkName.MATH: [r"1 + 1/2 = \boxed{1.5}", r"The answer is $x^2$."],
}


class Scripted(Echo):
    """Answers with the texts of `ANSWERS`, the last row of a suite first."""

    def answers(self, questions):
        counts: dict[str, int] = {}
        replies = []
        for number, question in enumerate(questions):
            name = BenchmarkName(re.split(r"[/.:]", question.location.rpartition("/")[2])[0].replace("test", "math"))
            index = counts.get(name.value, 0)
            counts[name.value] = index + 1
            self.asked.append(question.row.id)
            text = ANSWERS[name][index] if self._right else "A"
            failure = text[0] if isinstance(text, tuple) else ""
            completions = () if failure else (Completion(text),)
            frame = Frame(28, 28) if question.images else None
            replies.append((number, SuiteReply(completions, frame, failure)))
        yield from reversed(replies)


def evaluation_of(folder, names=tuple(BenchmarkName), **settings):
    suites = [suite_of(write_benchmark(folder, name), name) for name in names]
    return Evaluation(models=[EvaluatedModel("models/a", "a")], suites=suites, **settings)


def evaluate(evaluation, out):
    scripted, lines = [], []

    def open_scripted(model, evaluation, out, log):
        scripted.append(Scripted(model, evaluation))
        return scripted[-1]

    files = runner.evaluate(evaluation, out, lines.append, open_scripted)
    return {file.suite: read_verdicts(verdicts_path(file.path)) for file in files}, files, lines, scripted[0]


def test_models_are_compared_in_the_papers_table(tmp_path, monkeypatch):
    names = [BenchmarkName.OCRBENCH, BenchmarkName.LLAVABENCH, BenchmarkName.AI2D]
    evaluation = evaluation_of(tmp_path, names)
    for suite in evaluation.suites:  # as if the files were the published ones
        known = next(iter(PUBLISHED[suite.benchmark]))
        md5 = hashlib.md5(Path(suite.sources[0].file).read_bytes()).hexdigest()
        monkeypatch.setitem(PUBLISHED, suite.benchmark, {known: md5})
    evaluation.models.append(EvaluatedModel("models/b", "b"))
    with endpoint_stub(answer_of=reply, text_of=lambda messages: last_text(messages[:2])) as stub:
        evaluation.judge = judged(stub.url)
        evaluate(evaluation, tmp_path / "out")
    comparison = compare_models([read_model_answers(tmp_path / "out" / name) for name in "ba"])
    means = {(cell.model, cell.column.label): cell.estimate.mean for cell in comparison.estimates}
    assert means["a", "OCRBench"] == 0.5 and means["b", "OCRBench"] == 0
    # The third item failed for model a, and is left out of b, too: 8 6, 3 9 and twice 3 9.
    assert means["a", "LLaVABench Relative"] == pytest.approx((0.7 + 0.45) / (0.7 + 0.85))
    assert means["b", "LLaVABench VLM"] == pytest.approx(0.45)
    difference = {cell.column.label: cell.difference.difference for cell in comparison.differences}
    assert difference == {"AI2D": pytest.approx(-1 / 3), "OCRBench": 0.5, "LLaVABench VLM": pytest.approx(0.125)}
    text = format_comparison(comparison)
    assert "### Tables 3 and 4b: general benchmarks" in text
    assert "| model | AI2D | OCRBench | LLaVABench Relative | LLaVABench VLM | LLaVABench GPT4 |" in text
    assert re.search(r"\*Table 3: Curr-ReFT-3B\* \| 0.83 \| 64.70† \|  \|  \| 85.60† \|", text)
    assert "llavabench: 1 item not answered, or not judged, for some model left out" in text
    assert "ai2d: 1 undecided answer counts as wrong, of 3 of a" in text
    write_comparison_csv(comparison, tmp_path / "compared.csv")
    assert "printed,Curr-ReFT-3B,,,AI2D,0.83," in (tmp_path / "compared.csv").read_text()
    models = tuple(read_model_answers(tmp_path / "out" / name) for name in "ba")
    record = comparison_record(EvaluatedModels("out", models))
    assert any("OCRBench" in table["header"] for table in record["tables"]) and not record["bars"]
    assert json.loads(pairs_json(models, 1_000_000)[0])["pairs"][0]["rows"] == []  # items have verdicts of their own


def test_every_benchmark_is_scored_without_a_judge(tmp_path):
    found, files, _, _ = evaluate(evaluation_of(tmp_path), tmp_path / "out")
    overall = {name: scores.scores[0] for name, scores in found.items()}
    rounded = {
        name: (one.units, round(one.score, 3), round(one.undecided, 3), round(one.failed, 3))
        for name, one in overall.items()
    }
    assert rounded == {
        "mmbench": (3, 0.333, 0.333, 0),  # one wrong rotation decides a group whose others are undecided
        "ai2d": (3, 0.333, 0.333, 0),
        "mathvista": (3, 0.667, 0.333, 0),
        "ocrbench": (2, 0.5, 0, 0),
        "mmvet": (2, 0, 1, 0),
        "llavabench": (3, 0, 0.667, 0.333),
        "math": (2, 0.5, 0, 0),
    }
    assert found["mmbench"].rules == {"name": "readable", "version": 1, "judge": None}
    assert [one.name for one in found["mmbench"].scores] == ["overall", "animals", "perception", "scenes"]
    table = summary_table(files)
    assert re.search(r"^llavabench +overall +a +3 +0\.0 +0\.0 +66\.7 +33\.3 +0\.0 +-$", table, re.MULTILINE)


def test_the_manifest_says_what_was_asked_and_of_which_file(tmp_path):
    _, files, _, _ = evaluate(evaluation_of(tmp_path, [BenchmarkName.OCRBENCH]), tmp_path / "out")
    manifest = json.loads(manifest_path(files[0].path).read_text())
    assert manifest["prompts"]["benchmark"] == "ocrbench" and manifest["prompts"]["version"] == "vlmevalkit-default"
    assert len(manifest["prompts"]["md5"]) == 32 and manifest["prompts"]["published"] == ""
    assert manifest["decoding"]["temperature"] == 0 and "pixels" in manifest
    (answer, _) = read_answers(files[0].path)
    assert answer.resized == (28, 28) and answer.strict == () and answer.image


def test_another_generation_of_rules_scores_the_same_answers_again(tmp_path):
    evaluation = evaluation_of(tmp_path, [BenchmarkName.AI2D])
    found, files, _, _ = evaluate(evaluation, tmp_path / "out")
    before = files[0].path.read_bytes()
    evaluation.extraction = Extraction.G1
    again, _, _, scripted = evaluate(evaluation, tmp_path / "out")
    assert not scripted.asked and files[0].path.read_bytes() == before
    assert again["ai2d"].rules["name"] == "vlmevalkit-G1"
    assert (found["ai2d"].units[1].score, again["ai2d"].units[1].score) == (0.0, None)  # B and C are in the whole text


def reply(text):
    """A judge that matches eggs to the hen, light to "yes", and prefers what stands first."""
    content = dict(re.findall(r"\[([A-Z ]+) \w{16}\]\n(.*?)\n\[END", text, re.DOTALL))
    if "OPTIONS" in content:
        letters = {option: letter for letter, option in re.findall(r"([A-D])\. (.*)", content["OPTIONS"])}
        words = {"eggs": "hen", "light": "yes"}
        return next((letters[option] for word, option in words.items() if word in content["ANSWER"]), "Z")
    if "RESPONSE" in content:
        return "14" if "fourteen" in content["RESPONSE"] else "none"
    if "RIGHT ANSWERS" in content:
        return "0.5" if "x is" in content["ANSWER"] else "very good"
    return "8 6" if content["FIRST ANSWER"] == "A house." else "3 9"


def judged(url):
    return Judge(JudgeKind.ENDPOINT, model=MODEL, url=url)


def test_a_judge_decides_what_the_rules_leave(tmp_path):
    evaluation = evaluation_of(tmp_path)
    with endpoint_stub(answer_of=reply, text_of=lambda messages: last_text(messages[:2])) as stub:
        evaluation.judge = judged(stub.url)
        found, files, lines, _ = evaluate(evaluation, tmp_path / "out")
        calls = len(stub.calls)
        evaluate(evaluation, tmp_path / "out")
        assert len(stub.calls) == calls  # the ledger has all replies
    units = {name: [(unit.score, unit.decision) for unit in one.units] for name, one in found.items()}
    assert units["mmbench"] == [(1, "rule"), (0, "rule"), (1, "judge")]
    assert units["ai2d"] == [(1, "rule"), (0, "rule"), (None, "undecided")]
    assert units["mathvista"] == [(1, "rule"), (1, "judge"), (1, "rule")]
    assert units["mmvet"] == [(0.5, "judge"), (None, "failed")]
    # "A house." against itself: 8 6 in both orders; "A boat.": 8 6, then 3 9.
    assert units["llavabench"] == [(0.7, "judge"), (pytest.approx(0.45), "judge"), (None, "failed")]
    assert [unit.reference for unit in found["llavabench"].units] == [0.7, pytest.approx(0.85), None]
    overall = found["llavabench"].scores[0]
    assert overall.relative == pytest.approx((0.7 + 0.45) / (0.7 + 0.85))
    assert found["mmvet"].scores[0].score == 0.5 and found["mmvet"].scores[0].failed == 0.5
    assert not any("no idea" in call.text for call in stub.calls)  # their group is decided
    assert any("judge" in line for line in lines)
    mmvet = next(file for file in files if file.suite == "mmvet")
    verdicts = json.loads(verdicts_path(mmvet.path).read_text())["verdicts"]
    assert verdicts[1]["replies"] == ["very good", "very good"]  # asked again, once
    assert found["mmvet"].rules["judge"]["prompts"] == "benchmark-judge-1"
