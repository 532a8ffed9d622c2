"""Models compared by their answers: tables, paired differences, the paper's figures beside them, and refusals."""

import csv
import dataclasses
import json

import pytest

from currreft_jax.config import ImageCondition, Kind, SuiteDomain, Task
from currreft_jax.evaluation.answers import Answer, answer_line
from currreft_jax.evaluation.compare import ModelAnswers, SuiteAnswers, TableColumn, compare_models, read_model_answers
from currreft_jax.evaluation.comparison_tables import (
    comparison_tables,
    fault_notes,
    format_comparison,
    write_comparison_csv,
)
from currreft_jax.evaluation.statistics import ClaimVerdict, newcombe_interval, wilson_interval
from currreft_jax.evaluation.summary import Tally
from tests.evaluation.test_runner import evaluate, evaluation  # noqa: F401 evaluation is a fixture

DETECTION_IN = TableColumn(SuiteDomain.IN, Task.DETECTION, Kind.OPEN, ImageCondition.ORIGINAL)


def answer(row: int, *right: int, image: str = "", task=Task.DETECTION, kind=Kind.OPEN, **fields) -> Answer:
    """An answer with one verdict for each completion, which is right strictly where it is right at all."""
    graded = tuple(map(float, right))
    fields = {"strict": right, "strict_score": graded, "readable_score": graded, **fields}
    rest = {"reasons": (None,) * len(right), "decided": ("answer",) * len(right), "finished": (True,) * len(right)}
    return Answer(str(row), image, task, kind, ("text",) * len(right), readable=right, **fields, **rest)


def model(
    name: str, answers: list[Answer], domain=SuiteDomain.IN, images=ImageCondition.ORIGINAL, **suite
) -> ModelAnswers:
    return ModelAnswers(name, (SuiteAnswers("boxes", domain, images, tuple(answers), **suite),))


def numbered(*right: int, **fields) -> list[Answer]:
    return [answer(row, value, **fields) for row, value in enumerate(right)]


# 100 rows: 50 right by both, 12 by the second alone, 2 by the first alone.
FIRST, SECOND = [1] * 52 + [0] * 48, [1] * 50 + [0] * 2 + [1] * 12 + [0] * 36


def test_means_and_the_paired_difference_are_those_of_the_rows():
    comparison = compare_models([model("base", numbered(*FIRST)), model("rl", numbered(*SECOND))])
    means = {(cell.model, cell.metric): cell.estimate for cell in comparison.estimates}
    assert means["base", "readable"].interval == wilson_interval(52, 100)
    assert means["rl", "strict"].mean == 0.62
    strict, readable = comparison.differences
    assert (strict.metric, readable.metric) == ("strict", "readable")
    assert readable.difference.interval == newcombe_interval(36, 12, 2, 50)
    assert readable.verdict is ClaimVerdict.HOLDS and readable.rows_needed is None


def test_rows_are_paired_by_id_and_not_by_place():
    straight = compare_models([model("a", numbered(*FIRST)), model("b", numbered(*SECOND))])
    turned = compare_models([model("a", numbered(*FIRST)), model("b", numbered(*SECOND)[::-1])])
    assert straight.differences == turned.differences


def test_each_model_is_compared_with_the_one_before_it_and_holm_counts_all_of_a_metric():
    models = [model("base", numbered(*FIRST)), model("sft", numbered(*SECOND)), model("rl", numbered(*FIRST))]
    cells = [cell for cell in compare_models(models).differences if cell.metric == "readable"]
    assert [(cell.first, cell.second, cell.verdict.value) for cell in cells] == [
        ("base", "sft", "holds"),
        ("sft", "rl", "does not hold"),
    ]
    assert [cell.p_holm for cell in cells] == pytest.approx([2 * cells[0].difference.p_value] * 2)


def test_undecided_claims_say_how_many_rows_they_need():
    (cell,) = (
        cell
        for cell in compare_models([model("a", numbered(1, 1, 0, 0)), model("b", numbered(1, 1, 1, 0))]).differences
        if cell.metric == "readable"
    )
    assert cell.verdict is ClaimVerdict.UNDECIDED
    assert cell.rows_needed == 32  # 2.8^2 * (1/4) / (1/4)^2 = 31.4


def test_columns_are_domain_task_kind_and_images():
    answers = [
        *(answer(row, 1) for row in range(3)),
        *(answer(row, 1, task=Task.MATH) for row in range(3, 5)),
        answer(5, 1, task=Task.MATH, kind=Kind.JUDGE),
    ]
    base = model("base", answers)
    blank = model("base", answers[:3], SuiteDomain.OUT, ImageCondition.BLANK)
    comparison = compare_models([ModelAnswers("base", base.suites + blank.suites)])
    assert [column.label for column in comparison.columns] == [
        "detection in",
        "math in",
        "math judge in",
        "detection out, blank images",
    ]
    rows = {cell.column.label: cell.estimate.rows for cell in comparison.estimates if cell.metric == "readable"}
    assert list(rows.values()) == [3, 2, 1, 3]


def test_a_row_that_a_server_could_not_take_is_left_out_with_those_images_alone():
    failed = [dataclasses.replace(answer(0, 1), failure="overflow"), *numbered(1, 0, 1)[1:]]
    suites = model("base", numbered(1, 0, 1)).suites + model("base", failed, images=ImageCondition.BLANK).suites
    comparison = compare_models([ModelAnswers("base", suites)])
    rows = {cell.column.images: cell.estimate.rows for cell in comparison.estimates}
    assert rows == {ImageCondition.ORIGINAL: 3, ImageCondition.BLANK: 2}


def test_rows_of_one_image_are_one_cluster():
    images = [{"image": f"image {row // 4}"} for row in range(100)]
    first, second = (
        [answer(row, value, **images[row]) for row, value in enumerate(right)] for right in (FIRST, SECOND)
    )
    comparison = compare_models([model("a", first), model("b", second)])
    assert {cell.difference.clusters for cell in comparison.differences} == {25}
    assert "n = 100, 25 images" in format_comparison(comparison)


def test_graded_scores_and_several_completions_have_tables_of_their_own():
    graded = {"strict_score": (0.0, 0.9, 0.0, 0.0), "readable_score": (0.4, 0.9, 0.0, 0.2)}
    answers = [answer(row, 0, 1, 1, 0, strict=(0, 1, 0, 0), **graded) for row in range(12)]
    means = {cell.metric: cell.estimate.mean for cell in compare_models([model("a", answers)]).estimates}
    accuracies = {
        "strict": 0.25,
        "readable": 0.5,
        "strict@2": 1 / 2,
        "readable@2": 5 / 6,
        "strict@4": 1,
        "readable@4": 1,
    }
    assert means == pytest.approx({**accuracies, "strict_score": 0.225, "readable_score": 0.375})
    tally = Tally()  # of the table that an evaluation ends with
    for one in answers:
        tally.add(one)
    in_summary = {column: tally.mean(column) for column in tally.sums}
    assert in_summary == pytest.approx({**accuracies, "score": 0.375, "cut off": 0})
    official = [answer(row, 0, official=(1,)) for row in range(3)]
    means = {cell.metric: cell.estimate.mean for cell in compare_models([model("a", official)]).estimates}
    assert means == {"strict": 0, "readable": 0, "official": 1}


def test_the_papers_figures_stand_beside_ours_and_contradictions_are_marked():
    models = [model("base", numbered(*FIRST)), model("rl", numbered(*SECOND)), model("sft", numbered(*FIRST))]
    text = format_comparison(compare_models(models))
    assert "| base | 52.0 [42.3, 61.5] n = 100 |" in text
    assert "| *Table 1: Qwen2.5-VL-3B* | 61.8† |" in text and "| *Table 2: Qwen2.5-VL-3B* | 31.8† |" in text
    assert "| rl above base | detection in | 100 | +10.0 | [+2.7, +17.1] | 0.013 | 0.026 | holds |  |" in text
    assert "39.6" not in text  # of classification, which was not evaluated


def test_the_csv_holds_all_numbers(tmp_path):
    rights = {"base": FIRST, "rl": SECOND, "sft": FIRST}
    comparison = compare_models([model(name, numbered(*right)) for name, right in rights.items()])
    write_comparison_csv(comparison, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        records = list(csv.DictReader(file))
    sections = [record["section"] for record in records]
    assert sections == ["mean"] * 6 + ["difference"] * 4 + ["printed"] * 3
    difference, printed = records[8], records[10]
    assert float(difference["p_holm"]) == 2 * float(difference["p"])
    assert (difference["model"], difference["against"], difference["metric"]) == ("rl", "base", "readable")
    assert float(difference["value"]) == pytest.approx(0.1) and difference["verdict"] == "holds"
    assert (printed["source"], printed["value"], printed["faults"]) == ("Table 1", "0.618", "conflict")


def test_other_rows_files_and_names_are_refused():
    base = model("base", numbered(1, 0, 1))
    with pytest.raises(ValueError, match=r"detection in: 1 row is answered by base or rl alone, such as '3' of boxes"):
        compare_models([base, model("rl", numbered(1, 0, 1, 1))])
    with pytest.raises(ValueError, match="two models are called base"):
        compare_models([base, base])
    with pytest.raises(ValueError, match="the files of boxes changed between base and rl"):
        compare_models([base, model("rl", numbered(1, 0, 1), files="other")])


def test_columns_that_a_model_has_not_answered_are_noted_and_left_empty():
    both = [*numbered(1, 0, 1), answer(3, 1, task=Task.MATH)]
    comparison = compare_models([model("base", both), model("rl", numbered(1, 0, 1))])
    assert comparison.notes == ("math in: not answered by rl",)
    assert {cell.column for cell in comparison.differences} == {DETECTION_IN}
    assert "| rl | 66.7 [20.8, 93.9] n = 3 |  |" in format_comparison(comparison)


def test_other_settings_and_leaks_are_noted():
    first = model("base", numbered(1, 0, 1), settings={"decoding": 1, "prompts": 2})
    second = model("rl", numbered(1, 0, 1), settings={"decoding": 1, "prompts": 3}, leaks=7)
    notes = ("boxes: base and rl were evaluated with other prompts", "boxes: rl was trained on the images of 7 rows")
    comparison = compare_models([first, second])
    assert comparison.notes == notes
    assert all(f"Note: {note}." in format_comparison(comparison) for note in notes)


MANIFEST = {
    "model": {"name": "base", "path": "models/base"},
    "rows": {"suite": "boxes", "domain": "out", "count": 3, "files": [{"file": "x", "sample": "", "hash": "ab"}]},
    **{
        "images": "original",
        "pixels": [1, 2],
        "dtype": "float32",
        "prompts": {},
        "decoding": {},
        "scorer": {},
        "leaks": 0,
    },
}


def write(folder, manifest=MANIFEST, answers=3):
    folder.mkdir()
    (folder / "boxes.manifest.json").write_text(json.dumps(manifest))
    (folder / "boxes.jsonl").write_text("".join(map(answer_line, numbered(1, 0, 1)[:answers])))


def test_a_models_folder_is_read_with_its_manifests(tmp_path):
    write(tmp_path / "base")
    read = read_model_answers(tmp_path / "base")
    (suite,) = read.suites
    assert (read.name, suite.suite, suite.domain, suite.answers) == (
        "base",
        "boxes",
        SuiteDomain.OUT,
        tuple(numbered(1, 0, 1)),
    )
    assert [column.label for column in compare_models([read]).columns] == ["detection out"]


def test_folders_without_all_answers_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"absent holds no answers; evaluate its model first: python -m currreft_jax\.evaluate"
    ):
        read_model_answers(tmp_path / "absent")
    write(tmp_path / "short", answers=2)
    with pytest.raises(ValueError, match=r"boxes\.jsonl has answers to 2 of 3 rows; evaluate again"):
        read_model_answers(tmp_path / "short")
    write(tmp_path / "old", manifest={})
    with pytest.raises(ValueError, match=r"boxes\.manifest\.json is no manifest of this version"):
        read_model_answers(tmp_path / "old")
    (tmp_path / "old" / "boxes.manifest.json").unlink()
    with pytest.raises(ValueError, match=r"boxes\.jsonl has no manifest beside it"):
        read_model_answers(tmp_path / "old")


def test_what_an_evaluation_writes_is_compared(evaluation, tmp_path):  # noqa: F811
    evaluate(evaluation, tmp_path / "out")
    comparison = compare_models([read_model_answers(tmp_path / "out" / f"models-{name}") for name in "ba"])
    assert [column.label for column in comparison.columns] == ["math in", "math in, blank images"]
    difference = comparison.differences[0].difference
    assert (difference.rows, difference.clusters, difference.difference) == (
        10,
        5,
        1,
    )  # 7 rows on two images, 3 on none


def test_the_papers_tables_have_its_columns_in_its_order_and_other_rows_stand_apart():
    answers = [answer(row, 1, task=task) for row, task in enumerate((Task.CLASSIFY, Task.DETECTION, Task.MATH))]
    other = answer(9, 1, kind=Kind.JUDGE)
    inside, outside = model("base", [*answers, other]), model("base", answers, SuiteDomain.OUT)
    comparison = compare_models([ModelAnswers("base", (*inside.suites, *outside.suites))])
    paper, others = [table for table in comparison_tables(comparison) if table.metric == "readable"]
    order = [f"{task} {domain}" for domain in ("in", "out") for task in ("detection", "math", "classify")]
    assert paper.header == ["model", *order]
    assert paper.rows[0][0] == "base" and len(paper.rows) == 1 + paper.printed
    assert ["Table 1: Qwen2.5-VL-3B", "61.8†", "47.8†", "39.6", "22.3", "40.8†", "79.3†"] in paper.rows
    assert (others.header, others.printed) == (["model", "detection judge in"], 0)


def test_faults_of_the_papers_figures_are_told_with_those_of_models_that_are_not_recorded():
    outside = model("base", [answer(row, 1, task=Task.MATH) for row in range(3)], SuiteDomain.OUT)
    first, *unnamed = fault_notes(compare_models([outside]))
    assert first == "† Table 1 and Tables 2 and 4a disagree: math out of Qwen2.5-VL-3B."
    assert "Table 2, math out: 30.3, 34.9, 26.7," in unnamed[0] and "are no shares of 500 rows" in unnamed[0]
    assert "Table 4a, math out: 74.1 is no share of 500 rows" in unnamed[1]
