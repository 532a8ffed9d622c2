"""`python -m currreft_jax.dataset`: its output, files and errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax import dataset
from currreft_jax.data.fields import Fields
from currreft_jax.data.findings import NOTES, Problem
from currreft_jax.data.prompts import PAPER
from currreft_jax.data.rows import KEYS, parse_row
from currreft_jax.data.visualize import GREEN, ORANGE
from tests.data.test_visualize import extent

ROWS = [
    {"id": "d", "task": "detection", "kind": "open", "problem": "Where?", "solution": "[10, 20, 60, 70]"}
    | {"image": "a.png", "source": "coco", "origin": "CC-BY"},
    {"id": 44, "task": "detection", "kind": "choice", "problem": "Which?", "solution": "B", "image": "a.png"}
    | {"options": ["{box:0}", "{box:1}"], "boxes": [[0, 10, 40, 60], [90, 30, 140, 80]], "frame": [150, 100]},
    {"id": "t", "task": "math", "kind": "open", "problem": "2 + 2?", "solution": 4},
    {
        "id": "m",
        "messages": [{"role": "user", "content": "<image>and<image>"}, {"role": "assistant", "content": "x\u001b[2J"}],
    }
    | {"images": ["a.png", "b.png"]},
]


LETTER = "Ensure your final answer is exactly one of the provided option letters without any additional text."
OPTIONS = "Options:\nA. [0, 11, 37, 67]\nB. [84, 34, 131, 90]\n"
MAX_CHARACTERS = len(f"Which?\n{OPTIONS}{PAPER.instruction} {LETTER}")
DETECTION_PROMPT = f"Where? {PAPER.instruction} Output the final answer in JSON format in <answer> </answer> tags."


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    for name, size, color in (("a.png", (150, 100), "white"), ("b.png", (90, 60), "black")):
        image = Image.new("RGB", size, color)
        image.putpixel((0, 0), (9, 9, 9))  # not of one colour
        image.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return write(Path("rows.jsonl"), ROWS)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program; returns its exit code or error message, and its output."""

    def call(*arguments) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["dataset", *map(str, arguments)])
        code = None
        try:
            dataset.main()
        except SystemExit as exit:
            code = exit.code
        return code, capsys.readouterr().out

    return call


def test_check_of_a_clean_file(file):
    done = subprocess.run(
        [sys.executable, "-m", "currreft_jax.dataset", "check", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(dataset.__file__).parent.parent), "PATH": ""},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{'file':<40}    rows  images    image tokens  characters\n"
        f"{'':<56}  median    most        most\n"
        f"{'rows.jsonl':<40}       4       2      20      26{MAX_CHARACTERS:>12}\n"
        "\n"
        f"{'file':<40}kind    task          rows   right answers\n"
        f"{'rows.jsonl':<40}choice  detection        1   A 0, B 1\n"
        "\n"
        "not checked: what stands in training and testing: no two such parts; name files with --train and --test, or"
        ' give rows their "split"\n'
        "not checked: the tokens of texts: name a model, whose tokenizer counts them\n"
        "files 1, rows 4, errors 0, notes 0\n"
    )


def test_check_prints_and_writes_errors_and_exits_with_1(file, run):
    bad = [ROWS[0] | {"id": n, "problem": f"{n}?", "solution": "x"} for n in range(7)]
    test = write(Path("test.jsonl"), [*bad, ROWS[2] | {"extra": 1}])
    code, output = run("check", "--train", file, "--test", test, "--out", "report.json", "--examples", 2)
    assert code == 1
    table = output.partition("problem")[2]
    assert table.splitlines()[1] == f"{'gold answer unreadable':<40}       7   test.jsonl"
    assert "    test.jsonl:1: solution 'x' is no gold answer (bad_json)" in table
    assert "test.jsonl:3: solution" not in table
    assert "    and 5 more\n" in table
    assert "    test.jsonl:1: " + str(file.absolute().parent / "a.png") + " has the pixels of " in table
    assert f"{'question in training and testing':<40}       1   test.jsonl" in table
    assert f"{'note: key for rewards of your own':<40}       1   test.jsonl" in table
    assert table.endswith("files 2, rows 12, errors 15, notes 1\n")
    report = json.loads(Path("report.json").read_text())
    assert (report["errors"], report["notes"], len(report["findings"])) == (15, 1, 16)
    assert {"file": "test.jsonl", "problem": "gold answer unreadable", "rows": 7} in report["counts"]
    assert report["balances"][0]["counts"] == {"A": 0, "B": 1}
    assert report["findings"][0]["where"] == "test.jsonl:1"


def test_notes_do_not_change_the_exit_code(file, run):
    write(file, [ROWS[0] | {"otpions": []}])
    Image.new("RGB", (150, 100), "white").save("a.png")
    code, output = run("check", file)
    assert code is None
    assert "note: key for rewards of your own" in output
    assert "note: image of one colour" in output
    assert output.endswith("errors 0, notes 2\n")


def test_check_takes_kind_task_and_image_root(file, run):
    Path("data").mkdir()
    path = write(Path("data/counting.jsonl"), [{"problem": "How many?", "solution": 4, "image": "a.png"}])
    assert run("check", path)[0] == 1
    assert run("check", path, "--kind", "open", "--task", "math", "--image-root", ".")[0] is None


def test_check_takes_pixels_and_token_limits(file, run, checkpoint):
    assert run("check", file, "--max-prompt-tokens", 25)[0] == 1
    code, output = run("check", file, "--max-prompt-tokens", 25, "--max-pixels", 5000)
    assert code is None
    assert f"{'rows.jsonl':<40}       4       2       6      12{MAX_CHARACTERS - 2:>12}\n" in output
    code, output = run("check", file, "--model", checkpoint, "--max-pixels", 5000)
    assert code is None
    assert "image tokens" not in output
    assert "tokens of texts" not in output


def test_show_an_open_row(file, run):
    code, output = run("show", file, 1)
    assert code is None
    assert output == (
        "row        rows.jsonl:1, id d\n"
        "asks       open detection\n"
        f"image      {Path('a.png').absolute()}: 150 x 100, seen as 140 x 112 in 20 tokens\n"
        "source     coco\n"
        "origin     CC-BY\n"
        "gold       [10, 20, 60, 70]\n"
        "learnt     <answer>[9, 22, 56, 78]</answer>\n"
        f"prompt     20 tokens of images, {len(DETECTION_PROMPT)} characters of text; 2048 tokens may be; --model"
        f" counts the text's and shows the chat template\n{'-' * 40}\n<image>{DETECTION_PROMPT}\n{'-' * 40}\n"
        "written    row-1.png\n"
    )
    drawn = Image.open("row-1.png")
    assert drawn.size == (140, 112)
    x1, _, x2, y2 = extent(drawn, GREEN)
    assert (x1, x2, y2) == (9, 56, 78)


def test_show_a_choice_row_by_id_with_the_correct_option_in_green(file, run):
    code, output = run("show", file, "id=44", "--out", "c.png")
    assert code is None
    assert "frame      boxes are measured in 150 x 100\n" in output
    assert OPTIONS in output
    drawn = Image.open("c.png")
    assert extent(drawn, ORANGE)[2:] == (37, 67)
    assert extent(drawn, GREEN)[2:] == (131, 90)


def test_show_renders_the_chat_template_of_a_model(file, run, checkpoint):
    code, output = run("show", file, "t", "--model", checkpoint)
    assert code is None
    tokens = int(output.partition("prompt     ")[2].split()[0])
    assert "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n2 + 2? First" in output
    assert f"prompt     {tokens} tokens, 0 of them images; 2048 may be\n" in output
    assert tokens > len(PAPER.instruction)  # the tiny tokenizer is byte-level
    assert not list(Path().glob("row-*.png"))


def test_show_prints_what_rewards_of_ones_own_read(file, run):
    Path("own.jsonl").write_text(json.dumps(ROWS[2] | {"level": "5", "steps": 2}) + "\n")
    assert 'gold       4\nextra      {"level": "5", "steps": 2}\nlearnt' in run("show", "own.jsonl", 1)[1]


def test_show_writes_several_images_and_escapes_control_characters(file, run, checkpoint):
    code, output = run("show", file, 4, "--model", checkpoint)
    assert code is None
    assert "<|image_pad|> x 20<|vision_end|>and<|vision_start|><|image_pad|> x 6<|vision_end|><|im_end|>" in output
    assert "\x1b" not in output
    assert "learnt     x\\x1b[2J\n" in output
    assert (Image.open("row-4.png").size, Image.open("row-4-2.png").size) == ((140, 112), (84, 56))
    assert np.asarray(Image.open("row-4-2.png")).max() <= 9


def test_show_with_a_user_template(file, run, monkeypatch):
    Path("my_prompts.py").write_text(
        "from currreft_jax.data.prompts import Template\nSHORT = Template('Be short.', system='Hi.')\n"
    )
    monkeypatch.syspath_prepend(".")
    _, output = run("show", file, 3, "--template", "my_prompts:SHORT")
    assert "\nHi.2 + 2? Be short.\n" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "no files to check; name some, or some with --train and some with --test"),
        (["check", "gone.jsonl"], "gone.jsonl"),
        (["check", "empty.jsonl"], "empty.jsonl holds no rows; write one JSON object a line"),
        (["check", "damaged.json"], "damaged.json:1: not JSON"),
        (["check", "rows.jsonl", "--test", "rows.jsonl"], "rows.jsonl is given twice"),
        (["check", "rows.jsonl", "--model", "nowhere"], "nowhere is neither a folder nor the id of a model"),
        (["check", "rows.jsonl", "--template", "papre"], "no prompt template 'papre'"),
        (["check", "rows.jsonl", "--max-pixels", "9"], "min_pixels = 3136 and max_pixels = 9 leave no size"),
        (["check", "rows.jsonl", "--out", "no/folder.json"], "no/folder.json"),
        (["show", "rows.jsonl", "0"], "rows.jsonl has 4 rows, not a row 0"),
        (["show", "rows.jsonl", "44"], "rows.jsonl has 4 rows, not a row 44; an id of digits is written id=44"),
        (["show", "rows.jsonl", "z"], "rows.jsonl has no row of id 'z'; write a number from 1 to 4, or another id"),
        (["show", "bad.jsonl", "1"], "bad.jsonl:1: solution 'here' is no gold answer"),
        (["show", "bad.jsonl", "2"], "bad.jsonl:2: not JSON"),
        (["show", "bad.jsonl", "3"], "gone.png"),
        (["show", "bad.jsonl", "x"], "bad.jsonl has no row of id 'x'"),
        (["show", "rows.jsonl", "1", "--out", "row.xyz"], "unknown file extension: .xyz"),
    ],
)
def test_user_errors_print_one_line(file, run, arguments, message):
    Path("empty.jsonl").write_text("")
    Path("damaged.json").write_text('[{"a": 1}')
    bad = [json.dumps(ROWS[0] | {"solution": "here"}), "{", json.dumps(ROWS[0] | {"image": "gone.png"})]
    Path("bad.jsonl").write_text("\n".join(bad))
    code, _ = run(*arguments)
    assert isinstance(code, str)
    assert code.startswith("dataset: ")
    assert message in code
    assert "\n" not in code


def test_invalid_arguments_exit_with_2(run, capsys):
    for arguments in ([], ["check", "f", "--max-pixels", "0"], ["check", "f", "--kind", "x"], ["show", "f"], ["mend"]):
        assert run(*arguments)[0] == 2


def test_the_docs_name_every_problem_and_key_and_their_rows_parse(tmp_path):
    document = (Path(dataset.__file__).parent.parent / "docs" / "data.md").read_text()
    rows = re.findall(r"```json\n(.*?)```", document, re.S)[0].splitlines()
    assert [parse_row(Fields.from_json(row, "docs:1"), image_root=tmp_path).id for row in rows] == ["d1", "c1", "s1"]
    assert all(problem.value in document for problem in set(Problem) - NOTES)
    assert all(f"`{key}`" in document for key in KEYS)
