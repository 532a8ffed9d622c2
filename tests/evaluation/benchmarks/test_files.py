"""Published files read as downloaded: prompts, golds, images, and refusals that name file and line."""

import hashlib

import pytest

from currreft_jax.config import BenchmarkName
from currreft_jax.evaluation.benchmarks import files
from currreft_jax.evaluation.benchmarks.files import BenchmarkError, load_benchmark
from currreft_jax.evaluation.benchmarks.items import AnswerType
from tests.evaluation.benchmarks.published import records_of, suite_of, write_benchmark


def load(folder, name, records=None, **settings):
    return load_benchmark(suite_of(write_benchmark(folder, name, records), name, **settings))


@pytest.mark.parametrize("name", list(BenchmarkName))
def test_each_published_form_is_read(tmp_path, name):
    benchmark = load(tmp_path, name)
    assert len(benchmark.items) == len(records_of(name))
    assert set(benchmark.images) == (set() if name is BenchmarkName.MATH else {item.key for item in benchmark.items})
    assert benchmark.published == "" and not benchmark.without_image
    assert all(item.categories for item in benchmark.items)
    path = tmp_path / benchmark.items[0].location.rpartition(":")[0]
    assert benchmark.md5 == hashlib.md5(path.read_bytes()).hexdigest()


def test_the_prompt_of_a_choice_ends_in_a_space_and_a_line_break(tmp_path):
    items = {item.key: item for item in load(tmp_path, BenchmarkName.MMBENCH).items}
    assert items["1"].prompt == (
        "Hint: Look.\nQuestion: Which animal is number 1?\nOptions:\nA. cat\nB. dog\nC. cow\nD. hen\n"
        "Please select the correct answer from the options above. \n"
    )
    assert items["2"].prompt.startswith("Question: Is it day?\nOptions:\nA. yes\nB. no\nPlease")
    assert items["3000001"].golds == ("B",) and items["3000001"].group == "1"  # hen, cat, dog, cow
    assert items["1000002"].options == ("no", "yes") and items["1000002"].gold == "B"


def test_rotations_share_the_image_of_the_first(tmp_path):
    benchmark = load(tmp_path, BenchmarkName.MMBENCH)
    assert benchmark.images["3000001"] is benchmark.images["1"] is not benchmark.images["0"]
    assert {item.group for item in load(tmp_path, BenchmarkName.AI2D).items} == {"0", "1", "2"}


def test_golds_are_typed(tmp_path):
    choice, whole, decimal = load(tmp_path, BenchmarkName.MATHVISTA).items
    assert (choice.gold, choice.options, choice.answer_type) == ("B", ("2", "3"), AnswerType.CHOICE)
    assert choice.categories == ("figure question answering", "arithmetic reasoning", "logical reasoning")
    assert (whole.gold, whole.answer_type) == ("14", AnswerType.INTEGER)
    assert (decimal.gold, decimal.answer_type, decimal.categories[1]) == (
        "1.2",
        AnswerType.FLOAT,
        "numeric commonsense",
    )
    first, second = load(tmp_path, BenchmarkName.OCRBENCH).items
    assert first.golds == ("CENTRE", "Center") and (first.case_sensitive, second.case_sensitive) == (False, True)
    combined, single = load(tmp_path, BenchmarkName.MMVET).items
    assert combined.categories == ("ocr", "math", "ocr,math") and single.categories == ("rec", "only rec")
    assert load(tmp_path, BenchmarkName.MATH).items[1].categories == ("Precalculus", "level 5")
    assert r"\boxed{}" in load(tmp_path, BenchmarkName.MATH).items[0].system


def test_an_instruction_stands_below_the_question(tmp_path):
    item = load(tmp_path, BenchmarkName.MMBENCH, instruction="Think first.").items[0]
    assert item.prompt.endswith("Please select the correct answer from the options above.\nThink first.")


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    name = BenchmarkName.OCRBENCH
    with pytest.raises(BenchmarkError, match=r"ocrbench.tsv has the MD5 \w+, but ocrbench is OCRBench.tsv .*any_file"):
        load(tmp_path, name, any_file=False)
    md5 = hashlib.md5((tmp_path / "ocrbench.tsv").read_bytes()).hexdigest()
    monkeypatch.setitem(files.PUBLISHED, name, {"OCRBench": md5})
    assert load(tmp_path, name, any_file=False).published == "OCRBench"


def test_a_row_without_an_image_is_left_out_and_named(tmp_path):
    records = records_of(BenchmarkName.OCRBENCH)
    records[0]["image"] = ""
    benchmark = load(tmp_path, BenchmarkName.OCRBENCH, records)
    assert [item.key for item in benchmark.items] == ["2"]
    assert benchmark.without_image == (f"{tmp_path}/ocrbench.tsv:2",)


@pytest.mark.parametrize(
    ("name", "row", "change", "message"),
    [
        (BenchmarkName.AI2D, 0, {"answer": "E"}, r"ai2d.tsv:2: .*answer.*letter of the 4 options"),
        (BenchmarkName.AI2D, 1, {"B": ""}, r"ai2d.tsv:3: options are A, B, C and so on, without a gap"),
        (BenchmarkName.AI2D, 1, {"index": 0}, r"ai2d.tsv:3: index 0 is that of .*ai2d.tsv:2"),
        (BenchmarkName.AI2D, 1, {"image": "77"}, r"ai2d.tsv:3: \"image\" is '77', but no row has this index"),
        (BenchmarkName.AI2D, 1, {"image": "!" * 80}, r'ai2d.tsv:3: "image" is no base64 image'),
        (BenchmarkName.MMBENCH, 0, {"index": 5}, r"mmbench.tsv:3: a rotation of row 0, which the file lacks"),
        (BenchmarkName.MATHVISTA, 0, {"choices": "__import__('os').getcwd()"}, r"mathvista.tsv:2: .*choices"),
        (BenchmarkName.MATHVISTA, 1, {"answer": "many"}, r"mathvista.tsv:\d+: .*answer.*a number"),
        (BenchmarkName.MATHVISTA, 1, {"answer_type": "word"}, r"mathvista.tsv:\d+: .*answer_type"),
        (BenchmarkName.OCRBENCH, 0, {"answer": "['']"}, r"ocrbench.tsv:2: .*answer"),
        (BenchmarkName.MMVET, 0, {"category": "smell"}, r"mmvet.tsv:2: .*category"),
        (BenchmarkName.LLAVABENCH, 2, {"caption": " "}, r"llavabench.tsv:4: .*caption"),
        (BenchmarkName.MATH, 1, {"answer": ""}, r"test.jsonl:2: .*answer"),
    ],
)
def test_malformed_rows_are_named_with_file_and_line(tmp_path, name, row, change, message):
    records = records_of(name)
    records[row] |= change
    with pytest.raises(BenchmarkError, match=message):
        load(tmp_path, name, records)


def test_a_column_that_is_missing_is_named(tmp_path):
    records = [{k: v for k, v in one.items() if k != "category"} for one in records_of(BenchmarkName.OCRBENCH)]
    with pytest.raises(BenchmarkError, match=r"ocrbench.tsv:2: .*category"):
        load(tmp_path, BenchmarkName.OCRBENCH, records)
