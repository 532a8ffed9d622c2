"""Validation finds each planted fault at its location, and nothing in clean files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax.config import Kind, Task
from currreft_jax.data.balance import answer_balances
from currreft_jax.data.budget import PromptBudget, prompt_without_patches
from currreft_jax.data.examples import make_example
from currreft_jax.data.findings import NOTES, FileStats, Finding, Problem, ValidationReport, format_findings
from currreft_jax.data.processor import load
from currreft_jax.data.prompts import PAPER
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.validate import InputFile, validate_files
from currreft_jax.structs import Frame, Row
from tests import tiny

TRAIN = [
    {"task": "detection", "kind": "open", "problem": "Where is the dog?", "solution": "[10, 20, 60, 70]"},
    {"task": "detection", "kind": "judge", "problem": "Is {box:0} a cat?", "solution": "no", "boxes": [[1, 2, 30, 40]]},
    {"task": "detection", "kind": "choice", "problem": "Which is the dog?", "solution": "B"}
    | {"options": ["{box:0}", "{box:1}"], "boxes": [[1, 2, 30, 40], [10, 20, 60, 70]], "frame": [90, 80]},
    {"task": "classify", "kind": "open", "problem": "What is there?", "solution": "dog, dining table"},
    {"task": "math", "kind": "open", "problem": "How long is it?", "solution": "12"},
    {"messages": [{"role": "user", "content": "<image>Hello"}, {"role": "assistant", "content": "Hello."}]},
    {"task": "math", "kind": "open", "problem": "What is 2 + 2?", "solution": "4", "image": None},
]
TEST = [
    {"task": "math", "kind": "judge", "problem": "Is it 4 long?", "solution": "yes", "image": "t.png"},
    {"task": "math", "kind": "open", "problem": "What is 2 + 3?", "solution": "5", "image": None},
]


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(7):
        tiny.picture(90, 80, index).save(tmp_path / f"{index}.png")
    tiny.picture(90, 80, 99).save(tmp_path / "t.png")
    return tmp_path


def numbered(rows: list[dict]) -> list[dict]:
    return [{"id": f"r{index}", "image": f"{index}.png", **row} for index, row in enumerate(rows)]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def validated(
    folder: Path, train: list, test: list = TEST, budget: PromptBudget | None = None, **options
) -> ValidationReport:
    files = [write(folder / "train.jsonl", train), write(folder / "test.jsonl", numbered(test))]
    inputs = [InputFile(str(file), split) for file, split in zip(files, ("train", "test"), strict=True)]
    return validate_files(inputs, budget or PromptBudget(), **options)


def test_clean_files_have_no_findings(folder, checkpoint):
    report = validated(folder, numbered(TRAIN))
    assert report.findings == report.errors == []
    assert report.unchecked == ["the tokens of texts: name a model, whose tokenizer counts them"]
    assert [(Path(size.file).name, size.rows, size.images) for size in report.sizes] == [
        ("train.jsonl", 7, 6),
        ("test.jsonl", 2, 1),
    ]
    processor = load(checkpoint)
    counted = validated(
        folder, numbered(TRAIN), processor=processor, budget=PromptBudget(vision=processor.config.vision)
    )
    assert counted.findings == counted.unchecked == []
    assert json.loads(json.dumps(counted.to_json()))["errors"] == 0


def test_gold_expressions_are_parsed_by_the_maths_pool(folder):
    rows = numbered(TRAIN)
    for solution, bad in (("2\\sqrt{3}", 0), ("\\foo{", 1)):
        rows[4] |= {"solution": solution}
        found = validated(folder, rows).findings
        assert [finding.problem for finding in found] == [Problem.GOLD] * bad
        assert all("math-verify cannot read" in finding.message for finding in found)


def change(index: int, **keys):
    return lambda rows: [row | keys if i == index else row for i, row in enumerate(rows)]


def swap(index: int, row):
    return lambda rows: [*rows[:index], row, *rows[index + 1 :]]


def append(row: dict):
    return lambda rows: [*rows, row]


FAULTS = {
    "no json": (swap(2, "{"), Problem.BAD_ROW, 3, "not JSON"),
    "no row": (change(2, kind="chioce"), Problem.BAD_ROW, 3, '"kind" is "chioce"; it takes judge'),
    "missing": (
        change(3, image="gone.png"),
        Problem.MISSING_IMAGE,
        4,
        "gone.png is missing: put it there, or name the",
    ),
    "corrupt": (change(3, image="corrupt.png"), Problem.UNREADABLE_IMAGE, 4, "corrupt.png: not a readable image"),
    "huge": (change(3, image="huge.png"), Problem.UNREADABLE_IMAGE, 4, "huge.png: 20000 x 5001 pixels, more than"),
    "thin": (
        change(3, image="thin.png"),
        Problem.UNREADABLE_IMAGE,
        4,
        "thin.png: 2 x 500 pixels: one side is over 200",
    ),
    "a folder": (change(3, image="."), Problem.UNREADABLE_IMAGE, 4, "not a readable image (IsADirectoryError"),
    "gold outside": (change(0, solution="[10, 20, 92, 70]"), Problem.BOX, 1, "[10, 20, 92, 70] in solution leaves the"),
    "box outside": (change(1, boxes=[[1, 2, 30, 82]]), Problem.BOX, 2, "[1, 2, 30, 82] in boxes leaves the frame 90 x"),
    "box vanishes": (
        change(1, boxes=[[1, 2, 1.3, 40]]),
        Problem.BOX,
        2,
        "is less than a pixel in the 84 x 84 that the",
    ),
    "other shape": (change(2, frame=[80, 120]), Problem.SHAPE, 3, "frame 80 x 120, but the image has 90 x 80 pixels"),
    "judge": (change(1, solution="maybe"), Problem.GOLD, 2, "'maybe' is no gold answer (not_yes_or_no)"),
    "letter": (change(2, solution="C"), Problem.GOLD, 3, "'C' is no gold answer (unknown_option)"),
    "xywh": (change(0, solution="[60, 20, 30, 40]"), Problem.GOLD, 1, "is it x, y, width, height?"),
    "no box": (change(0, solution="left"), Problem.GOLD, 1, "'left' is no gold answer (bad_json)"),
    "labels": (change(3, solution=" , "), Problem.GOLD, 4, "is no gold answer (empty_answer)"),
    "maths": (change(4, solution="<answer></answer>"), Problem.GOLD, 5, "is no gold answer (empty_answer)"),
    "same id": (change(3, id="r1"), Problem.ID, 4, "id 'r1' is that of "),
    "same row": (
        append(TRAIN[3] | {"id": "x", "image": "3.png"}),
        Problem.DUPLICATE,
        8,
        "train.jsonl:4 asks; leave one",
    ),
    "same row in other words": (
        append(TRAIN[3] | {"id": "x", "image": "copy.png", "problem": " what  IS there?", "solution": "cat"}),
        Problem.DUPLICATE,
        8,
        "train.jsonl:4 asks, and its solution differs",
    ),
    "same chat": (append(TRAIN[5] | {"id": "x", "image": "5.png"}), Problem.DUPLICATE, 8, "train.jsonl:6 asks"),
    "long prompt": (
        change(3, image="wide.png"),
        Problem.LONG_PROMPT,
        4,
        "100 tokens, 100 of them images, where 90 are",
    ),
    "key twice": (
        swap(3, json.dumps({"id": "r3", "image": "3.png", **TRAIN[3]})[:-1] + ', "solution": "cat"}'),
        Problem.REPEATED_KEY,
        4,
        '"solution" is written more than once, and only the last value is read; leave one of them',
    ),
    "empty answer": (
        change(5, messages=[TRAIN[5]["messages"][0], {"role": "assistant", "content": " \n"}]),
        Problem.EMPTY_TURN,
        6,
        "message 2, of the assistant, is empty; write it, or leave the row out",
    ),
    "one colour": (change(3, image="plain.png"), Problem.PLAIN_IMAGE, 4, "plain.png: every pixel is (255, 255, 255)"),
    "frame": (change(2, frame=[180, 160]), Problem.FRAME, 3, "boxes are moved by 0.500 along x and 0.500 along y"),
    "misspelt key": (change(2, otpions=[]), Problem.EXTRA_KEY, None, '"otpions" of 1 row (first'),
    "no rule": (change(4, task="other"), Problem.NO_RULE, None, "no rule scores 1 row, whose answers need a reward of"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_the_only_finding(folder, name):
    mutate, problem, line, message = FAULTS[name]
    (folder / "corrupt.png").write_bytes((folder / "1.png").read_bytes()[:300])
    if name == "huge":
        Image.new("1", (20_000, 5_001)).save(folder / "huge.png")
    Image.new("L", (2, 500)).save(folder / "thin.png")
    tiny.picture(280, 280).save(folder / "wide.png")
    Image.new("RGBA", (60, 60), (200, 10, 30, 0)).save(folder / "plain.png")
    Image.open(folder / "3.png").save(folder / "copy.png", compress_level=0)
    report = validated(folder, mutate(numbered(TRAIN)), budget=PromptBudget(max_prompt_tokens=90))
    (finding,) = report.findings
    assert finding.problem is problem
    assert finding.location == str(folder / "train.jsonl") + (f":{line}" if line else "")
    assert message in finding.message
    assert (report.errors == []) == (problem in NOTES)


def test_unknown_keys_of_all_files_are_one_note_with_counts_and_near_names(folder):
    train = [row | {"tolerance": 1.0} for row in numbered(TRAIN)]
    train[1]["otpions"] = []
    (finding,) = validated(folder, train, [row | {"tolerance": 2.0} for row in TEST]).findings
    assert finding.problem is Problem.EXTRA_KEY
    first = folder / "train.jsonl"
    assert finding.message.startswith(
        f'"tolerance" of {len(TRAIN) + len(TEST)} rows (first {first}:1), "otpions" of 1 row (first {first}:2; is it'
        ' "options", misspelt?): none of boxes, conversations, '
    )


def test_columns_of_long_names_stay_apart():
    name = f"{'rows/' * 12}train.jsonl"
    balance = answer_balances([judge("yes"), judge("no")])
    report = ValidationReport(True, [Finding(Problem.NO_RULE, name, name, "text")], [FileStats(name, 2, 1, 5, 6, 7)])
    report.balances = [(name, one) for one in balance]
    lines = format_findings(report, 5)
    assert [line.split() for line in lines if line.startswith(name)] == [
        [name, "2", "1", "5", "6", "7"],
        [name, "judge", "math", "2", "yes", "1,", "no", "1"],
    ]
    header, row = lines[0], next(line for line in lines if line.startswith(name))
    assert header.index("rows") + len("rows") == row.index(" 2") + 2
    assert [line.split()[-2:] for line in lines if line.startswith("note: ")] == [["1", name]]


def test_leaked_images_are_found_by_their_pixels(folder):
    """Names, formats and orientation tags of files do not matter."""
    image = Image.open(folder / "2.png")
    image.save(folder / "copy.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    names = ["2.png", "copy.bmp", "turned.png"]
    leaked = [TEST[0] | {"image": name, "problem": f"Is it {name}?"} for name in names]
    findings = validated(folder, numbered(TRAIN), [*TEST, *leaked]).findings
    assert {finding.problem for finding in findings} == {Problem.LEAKED_IMAGE}
    assert [finding.location.rpartition(":")[2] for finding in findings] == ["3", "4", "5"]
    for name, finding in zip(names, findings, strict=True):
        assert finding.message.startswith(f"{folder / name} has the pixels of {folder / '2.png'} in the training row ")
        assert f"{folder / 'train.jsonl'}:3; leave one" in finding.message


def test_leaked_questions_without_images_are_errors_and_with_images_notes(folder):
    questions = [TEST[1] | {"problem": "what is 2 +  2?"}, TEST[0] | {"problem": "How long is it?", "solution": "yes"}]
    findings = validated(folder, numbered(TRAIN), questions).findings
    assert [finding.problem for finding in findings] == [Problem.LEAKED_QUESTION, Problem.SAME_WORDING]
    assert f"training row {folder / 'train.jsonl'}:7 asks the same" in findings[0].message
    assert f"training row {folder / 'train.jsonl'}:5 is worded alike" in findings[1].message


@pytest.mark.parametrize(
    ("splits", "leaks", "checked"),
    [
        (("train", "test"), 1, True),
        (("train", "val"), 1, True),
        (("train", "trial"), 1, True),
        (("Training", "testA"), 1, True),
        (("train", "train2014"), 0, False),
        (("test", "test"), 0, False),
        (("", "test"), 0, False),
        (("", ""), 0, False),
    ],
)
def test_rows_of_one_file_are_divided_by_their_split(folder, splits, leaks, checked):
    rows = [row | {"image": "1.png", "split": split} for row, split in zip(numbered(TRAIN)[3:5], splits, strict=True)]
    report = validate_files([InputFile(str(write(folder / "f.jsonl", rows)))], PromptBudget())
    assert [finding.problem for finding in report.findings] == [Problem.LEAKED_IMAGE] * leaks
    assert (len(report.unchecked) == 1) == checked


def test_the_split_of_a_file_overrides_that_of_its_rows(folder):
    rows = [row | {"split": "test"} for row in numbered(TRAIN)]
    (finding,) = validated(folder, rows, [TEST[0] | {"image": "1.png"}]).findings
    assert finding.problem is Problem.LEAKED_IMAGE
    path = write(folder / "f.jsonl", rows)
    assert not validate_files([InputFile(str(path), "train")], PromptBudget()).findings


def test_repeated_files_raise(folder):
    path = str(write(folder / "f.jsonl", numbered(TRAIN)))
    with pytest.raises(ValueError, match=r"f\.jsonl is given twice; name each file once"):
        validate_files([InputFile(path, "train"), InputFile(str(folder / "." / "f.jsonl"), "test")], PromptBudget())


def test_token_counts_match_the_prompts(folder, checkpoint):
    processor = load(checkpoint, max_pixels=5000)
    budget = PromptBudget(10_000, processor.min_pixels, processor.max_pixels, processor.config.vision)
    report = validated(folder, numbered(TRAIN), budget=budget, processor=processor)
    with RowFile(folder / "train.jsonl") as file:
        prompts = [make_example(file[index], processor, PAPER, location="f:1").prompt for index in range(len(file))]
    lengths = [len(prompt.tokens) for prompt in prompts]
    assert report.sizes[0].most_tokens == max(lengths)
    assert report.sizes[0].median_tokens == int(np.median(lengths))
    strict = replace(budget, max_prompt_tokens=max(lengths) - 1)
    (finding,) = validated(folder, numbered(TRAIN), budget=strict, processor=processor).findings
    assert finding.problem is Problem.LONG_PROMPT
    assert finding.location.endswith(f":{lengths.index(max(lengths)) + 1}")
    with RowFile(folder / "train.jsonl") as file:
        frames = [(picture.original, picture.resized) for picture in prompts[0].images]
        np.testing.assert_array_equal(
            prompt_without_patches(file[0], processor, PAPER, frames, budget, "f").tokens, prompts[0].tokens
        )


def test_a_budget_without_room_raises():
    with pytest.raises(ValueError, match="min_pixels = 3136 and max_pixels = 100 leave no size"):
        PromptBudget(max_pixels=100)


def judge(solution: str) -> Row:
    return Row("r", Task.MATH, Kind.JUDGE, "q", solution)


def choice(solution: str, options: int = 4, multiple: bool = False) -> Row:
    return Row("r", Task.CLASSIFY, Kind.CHOICE, "q", solution, options=("x",) * options, multiple=multiple)


# (rows, counts, whether they are balanced)
BALANCES = [
    ([judge("yes")] * 5 + [judge("No.")] * 3, {"yes": 5, "no": 3}, True),
    ([judge("yes")] * 550 + [judge("no")] * 450, {"yes": 550, "no": 450}, True),
    ([judge("yes")] * 600 + [judge("no")] * 400, {"yes": 600, "no": 400}, False),
    ([judge("yes")] * 30, {"yes": 30, "no": 0}, False),
    ([choice("A")] * 100, {"A": 100, "B": 0, "C": 0, "D": 0}, False),
    ([choice(letter) for letter in "ABCD" * 25], {"A": 25, "B": 25, "C": 25, "D": 25}, True),
    ([choice("A, B", multiple=True), choice("C, D", multiple=True)] * 50, dict.fromkeys("ABCD", 50), True),
    ([choice("A, B", multiple=True)] * 50, {"A": 50, "B": 50, "C": 0, "D": 0}, False),
    ([choice("A", 2), choice("B", 2)] * 50, {"A": 50, "B": 50}, True),
    ([choice(letter, 0) for letter in "ABCA" * 50], {"A": 100, "B": 50, "C": 50}, False),
    ([choice(letter, 0) for letter in "ABC" * 50], {"A": 50, "B": 50, "C": 50}, True),
]


@pytest.mark.parametrize(("rows", "counts", "balanced"), BALANCES, ids=range(len(BALANCES)))
def test_answer_balances(rows, counts, balanced):
    (found,) = answer_balances(rows)
    assert (found.counts, found.is_balanced, found.rows) == (counts, balanced, len(rows))


def test_labels_are_counted_and_need_not_be_balanced():
    rows = [Row("r", Task.CLASSIFY, Kind.OPEN, "q", solution) for solution in ["dog, cat", *["Dog"] * 99]]
    (found,) = answer_balances([*rows, Row("r", Task.MATH, Kind.OPEN, "q", "4")])
    assert (str(found), found.is_balanced) == ("dog 100, cat 1", True)
    many = Row("r", Task.CLASSIFY, Kind.OPEN, "q", ", ".join("abcdefghij"))
    assert str(answer_balances([many])[0]) == "a 1, b 1, c 1, d 1, e 1, f 1, g 1, h 1 and 2 more"


def test_rows_with_other_boxes_or_kinds_are_not_duplicates(folder):
    row = numbered(TRAIN)[1]
    others = [row | {"id": "x", "boxes": [[1, 2, 30, 50]]}, row | {"id": "y", "kind": "choice", "solution": "A"}]
    assert not validated(folder, [row, *others]).findings


def test_unbalanced_answers_are_noted(folder):
    rows = [TRAIN[1] | {"id": str(n), "image": "1.png", "problem": f"{n} {{box:0}}?"} for n in range(40)]
    report = validated(folder, rows)
    (finding,) = report.findings
    assert finding.problem is Problem.BALANCE
    assert "right answers of judge detection: yes 0, no 40; even would be yes 20, no 20" in finding.message
    assert report.errors == []


def test_rows_with_several_faults_have_several_findings(folder):
    rows = numbered(TRAIN)
    rows[1] |= {"solution": "maybe", "boxes": [[0, 0, 500, 500]]}
    rows[0] |= {"image": "gone.png", "solution": "x"}
    report = validated(folder, rows)
    assert {finding.problem for finding in report.findings} == {Problem.BOX, Problem.GOLD, Problem.MISSING_IMAGE}
    assert [counted.kind for file, counted in report.balances if file.endswith("train.jsonl")] == [
        Kind.CHOICE,
        Kind.OPEN,
    ]


def test_shared_images_are_decoded_once_and_progress_is_reported(folder):
    calls: list[tuple[str, int]] = []

    def progress(items, name, total):
        calls.append((name, total))
        return items

    rows = [row | {"image": "1.png"} for row in numbered(TRAIN)[3:5]]
    validated(folder, rows, progress=progress, threads=2)
    assert dict(calls) == {
        "rows of train.jsonl": 2,
        "rows of test.jsonl": 2,
        "images": 2,
        "prompts": 4,
        "gold answers, 256 at a time": 1,
    }


def test_frames_of_resized_images_are_accepted(folder):
    """As in the authors' test rows, whose boxes are measured in the frame of an earlier resize."""
    tiny.picture(640, 427).save(folder / "0.png")
    row = numbered(TRAIN)[0] | {"frame": [644, 420]}
    assert PromptBudget().resized_frame(Frame(640, 427)) == Frame(644, 420)
    (finding,) = validated(folder, [row]).findings
    assert finding.problem is Problem.FRAME
    outside = validated(folder, [row | {"solution": "[600, 300, 640, 425]"}]).findings
    assert [finding.problem for finding in outside] == [Problem.BOX, Problem.FRAME]
    assert "[600, 300, 640, 425] in solution leaves the frame 644 x 420" in outside[0].message
