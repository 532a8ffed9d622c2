"""Row files in all published formats load; malformed rows raise with location and remedy."""

import json
import threading
from dataclasses import replace
from os.path import normpath
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from currreft_jax.config import Kind, Task
from currreft_jax.data.fields import Fields, LineError, repeated_keys
from currreft_jax.data.row_files import RowFile, parse_rows, write_rows
from currreft_jax.data.rows import KEYS, parse_row, row_to_json
from currreft_jax.structs import Frame, Row, Turn

DETECTION = {
    "id": "d1",
    "task": "detection",
    "kind": "open",
    "problem": "Where is the dog?",
    "solution": "[10, 20, 30, 40]",
    "image": "images/dog.jpg",
    "frame": [640, 480],
    "source": "coco",
    "split": "train",
    "origin": "CC-BY 4.0",
}
CHOICE = {
    "id": 7,
    "task": "detection",
    "kind": "choice",
    "problem": "Which box shows the dog?",
    "solution": "B",
    "image": "dog.jpg",
    "options": ["{box:0}", "{box:1}"],
    "boxes": [[0, 0, 5, 5], [1.5, 2, 3, 4]],
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A dog."},
    ],
    "images": ["dog.jpg"],
}


def write(path: Path, *rows) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def rows_of(path: Path, **defaults) -> list[Row]:
    with RowFile(path, **defaults) as file:
        return [file[index] for index in range(len(file))]


def refusal(row, **defaults) -> str:
    text = row if isinstance(row, str | bytes) else json.dumps(row)
    with pytest.raises(LineError) as refused:
        parse_row(Fields.from_json(text, "f.jsonl:3"), image_root=Path("/data"), **defaults)
    return str(refused.value)


def test_all_fields_are_parsed(tmp_path):
    (row,) = rows_of(write(tmp_path / "rows.jsonl", DETECTION))
    assert row == Row(
        "d1",
        Task.DETECTION,
        Kind.OPEN,
        "Where is the dog?",
        "[10, 20, 30, 40]",
        (str(tmp_path / "images/dog.jpg"),),
        frame=Frame(640, 480),
        source="coco",
        split="train",
        origin="CC-BY 4.0",
    )
    (row,) = rows_of(write(tmp_path / "rows.jsonl", CHOICE), image_root="/elsewhere")
    assert (row.id, row.images, row.options) == ("7", ("/elsewhere/dog.jpg",), ("{box:0}", "{box:1}"))
    assert row.boxes == ((0.0, 0.0, 5.0, 5.0), (1.5, 2.0, 3.0, 4.0))
    assert not row.multiple


AUTHORS = [
    {"problem": "How many?", "solution": "<answer>4</answer>", "task": "math", "image": "a.png"},
    {"problem": "How many?", "solution": 4, "image": "b.png"},
    {"problem": "How many?", "solution": 2.5, "task": "math", "image": "b.png"},
]


@pytest.mark.parametrize("form", ["lines", "list", "indented list", "list with a byte-order mark"])
def test_authors_files_load_unchanged(tmp_path, form):
    path = tmp_path / "math_math_train.json"
    if form == "lines":
        write(path, *AUTHORS)
    else:
        text = json.dumps(AUTHORS, indent=1 if form == "indented list" else None)
        path.write_text(text, "utf-8-sig" if form.endswith("mark") else "utf-8")
    rows = rows_of(path, kind=Kind.OPEN, task=Task.MATH, image_root=tmp_path / "images")
    assert [row.solution for row in rows] == ["<answer>4</answer>", "4", "2.5"]
    assert all((row.kind, row.task) == (Kind.OPEN, Task.MATH) for row in rows)
    assert rows[0].images == (str(tmp_path / "images/a.png"),)
    assert len({row.id for row in rows}) == 3
    assert [row.id for row in rows] == [row.id for row in rows_of(path, kind=Kind.OPEN, task=Task.MATH)]


def test_equal_rows_without_ids_get_distinct_ids(tmp_path):
    for text in (json.dumps([AUTHORS[0]] * 3), "\n".join([json.dumps(AUTHORS[0])] * 3)):
        (tmp_path / "f.json").write_text(text)
        rows = rows_of(tmp_path / "f.json", kind=Kind.OPEN)
        assert len({row.id for row in rows}) == 3
        assert len({row.id.partition("-")[0] for row in rows}) == 1


@pytest.mark.parametrize(
    ("task", "kind", "multiple"), [("classify", "choice", True), ("math", "choice", False), ("classify", "open", False)]
)
def test_authors_classify_choices_default_to_multiple(task, kind, multiple):
    fields = Fields({"problem": "q", "solution": "A", "task": task, "image": "a.png"}, "f:1")
    assert parse_row(fields, image_root=Path("/"), kind=Kind(kind)).multiple is multiple
    own = Fields({**fields.keys, "kind": kind}, "f:1")
    assert parse_row(own, image_root=Path("/")).multiple is False


def test_llava_conversations_load(tmp_path):
    llava = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors?"},
            {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    (row,) = rows_of(write(tmp_path / "llava.jsonl", llava))
    assert (row.kind, row.task, row.problem, row.solution) == (Kind.CHAT, Task.OTHER, "", "")
    assert row.images == (str(tmp_path / "coco/train2017/000000033471.jpg"),)
    assert row.messages == (
        Turn("user", "<image>\nWhat are the colors?"),
        Turn("assistant", "White and red."),
        Turn("user", "Sure?"),
        Turn("assistant", "Yes."),
    )


def test_ms_swift_messages_load(tmp_path):
    text_only = {"messages": CHAT["messages"][2:] and [{"role": "user", "content": "2 + 2?"}, CHAT["messages"][2]]}
    first, second = rows_of(write(tmp_path / "sft.jsonl", CHAT | {"task": "math"}, text_only))
    assert (first.kind, first.task) == (Kind.CHAT, Task.MATH)
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant"]
    assert (second.images, second.messages[0]) == ((), Turn("user", "2 + 2?"))


def test_keys_that_the_schema_does_not_know_are_the_rows_extra(tmp_path):
    keys = DETECTION | {"tolerance": 5, "marks": [0, {"a": None}], "unit": None, "judge": {"score": 1}, "video": ""}
    row = parse_row(Fields(keys, "f:1"), image_root=tmp_path)
    assert row.extra == {"tolerance": 5, "marks": [0, {"a": None}]}
    assert parse_row(Fields(row_to_json(row), "f:1"), image_root=tmp_path) == row
    assert hash(row) == hash(parse_row(Fields(DETECTION | {"id": row.id}, "f:1"), image_root=tmp_path))


def test_nulls_and_blank_lines_are_ignored(tmp_path):
    nulls = {"id": None, "options": None, "multiple": None, "frame": None, "boxes": None, "images": None, "split": None}
    path = write(tmp_path / "rows.jsonl", "", DETECTION | nulls, "  ", DETECTION | {"messages": None})
    with RowFile(path) as file:
        assert len(file) == 2
        assert file[0].frame is None
        assert file.location(1) == f"{path}:4"


def test_a_table_that_is_no_rows_names_the_command_that_makes_them(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,label\n")
    with RowFile(tmp_path / "boxes.csv") as file, pytest.raises(LineError, match=r"not JSON .*dataset build table"):
        file[0]


REFUSED = [
    ("{", "not JSON"),
    ("[" * 9000, "not JSON"),
    ('{"id": NaN}', "not JSON (NaN is no number)"),
    ('{"problem": "\\ud800"}', "not JSON ('utf-8' codec can't encode"),
    (b'{"problem": "\xff"}', "not JSON ('utf-8' codec can't decode"),
    ("[1]", "a list; write one object a line"),
    ("{1}", "; write one object a line"),
    (DETECTION | {"kind": "opne"}, '"kind" is "opne"; it takes judge, choice, open, chat'),
    (DETECTION | {"kind": None}, '"kind" is missing; it takes judge, choice, open, chat'),
    (DETECTION | {"task": ["math"]}, '"task" is ["math"]; it takes detection, classify, math, other'),
    (DETECTION | {"task": "poly"}, '"poly"; it takes detection, classify, math, other; other is a task with a reward'),
    (DETECTION | {"id": 1.5}, '"id" is 1.5; it takes a string or a whole number'),
    (DETECTION | {"problem": ""}, '"problem" is ""; it takes a question'),
    (DETECTION | {"problem": 3}, '"problem" is 3; it takes a string: the question'),
    (DETECTION | {"problem": "<image> where?"}, "problem or options have <image>; remove it"),
    (DETECTION | {"solution": None}, '"solution" is missing; it takes a string: the gold answer'),
    (DETECTION | {"solution": True}, '"solution" is true; it takes a string: the gold answer'),
    (DETECTION | {"solution": [[1, 2]]}, 'it takes a string: the gold answer; write "[[1, 2]]"'),
    (DETECTION | {"image": None}, 'task detection without an image; "image" takes a path'),
    (DETECTION | {"image": ""}, '"image" is ""; it takes a path, or a list of paths'),
    (DETECTION | {"image": 3}, '"image" is 3; it takes a path, or a list of paths'),
    (DETECTION | {"image": None, "images": ["a", 1]}, '"images" is ["a", 1]; it takes a path, or a list of paths'),
    (DETECTION | {"images": ["a"]}, 'both "image" and "images"; write one of them'),
    (DETECTION | {"options": "A"}, '"options" is "A"; it takes a list of at most 26 strings'),
    (DETECTION | {"options": ["x"] * 27}, "it takes a list of at most 26 strings"),
    (DETECTION | {"multiple": 1}, '"multiple" is 1; it takes true or false'),
    (DETECTION | {"frame": [640]}, '"frame" is [640]; it takes [width, height], in pixels'),
    (DETECTION | {"frame": [640, 0.5]}, '"frame" is [640, 0.5]; it takes [width, height], in pixels'),
    (DETECTION | {"frame": [640, 10**9]}, "it takes [width, height], in pixels"),
    (CHOICE | {"boxes": [[0, 0, 5, 10**400]]}, "it takes a list of [x1, y1, x2, y2]"),
    (DETECTION | {"source": 1}, '"source" is 1; it takes a string'),
    (CHOICE | {"boxes": [0, 0, 5, 5]}, '"boxes" has 0; it takes a list of [x1, y1, x2, y2]'),
    (CHOICE | {"boxes": [[0, 0, 5, "5"]]}, '"boxes" has [0, 0, 5, "5"]; it takes'),
    (CHOICE | {"boxes": [[5, 0, 5, 5]]}, '"boxes" has [5, 0, 5, 5]; it takes'),
    (
        '{"boxes": [[0, 0, 1e999, 5]], ' + json.dumps(CHOICE | {"boxes": None})[1:].replace(', "boxes": null', ""),
        "it ta",
    ),
    (CHOICE | {"boxes": [[0, 0, 5, 5]]}, 'the texts name {box:1}, but "boxes" has 1'),
    (CHOICE | {"options": ["{box:0}", "{box:3}"]}, 'the texts name {box:3}, but "boxes" has 2'),
    (CHOICE | {"options": ["{box:0}", "no"]}, '"boxes" has 2, but no text names {box:1}'),
    (CHAT | {"kind": "open"}, 'kind open has "messages"; only chat rows have them'),
    (DETECTION | {"kind": "chat"}, 'kind chat lacks "messages"'),
    (CHAT | {"messages": []}, '"messages" is []; it takes a list of {"role", "content"}, in which a user speaks first'),
    (CHAT | {"messages": CHAT["messages"][:2]}, "in which a user speaks first and an assistant last"),
    (CHAT | {"messages": CHAT["messages"][2:]}, "in which a user speaks first and an assistant last"),
    (CHAT | {"messages": [CHAT["messages"][2], *CHAT["messages"]]}, "in which a user speaks first"),
    (CHAT | {"messages": [{"role": "tool", "content": "x"}]}, '"messages" has {"role": "tool", "content": "x"}'),
    (CHAT | {"messages": [{"role": ["user"], "content": "x"}]}, '"messages" has {"role": ["user"], "content": "x"}'),
    (
        {"conversations": [{"from": "human"}]},
        '"conversations" has {"from": "human"}; it takes a list of {"from", "value',
    ),
    (CHAT | {"images": ["a", "b"]}, "the messages have 1 <image>, but there are 2 images; write one for each"),
    (CHAT | {"images": []}, "the messages have 1 <image>, but there are 0 images"),
    (
        CHAT | {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<image>"}]},
        "<image> in or after the first answer; write the turns before it as a row of their own",
    ),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=range(len(REFUSED)))
def test_malformed_rows_raise_with_location_and_remedy(row, message):
    assert refusal(row).startswith("f.jsonl:3: ")
    assert message in refusal(row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"b": ]', ":3: not JSON"),
        ('[{"a": 1}', ":1: not JSON"),
        ('[{"a": 1} {"b": 2}]', ":1: not JSON (no comma after an item)"),
        ('[{"a": 1}]\n[{"b": 2}]', ":1: not JSON (text after the list)"),
        ("[" * 9000, ":1: not JSON"),
    ],
)
def test_malformed_lists_raise(tmp_path, text, message):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(LineError, match=r"f\.json:\d") as refused:
        RowFile(tmp_path / "f.json")
    assert message in str(refused.value)


def test_empty_missing_and_wrongly_encoded_files_raise(tmp_path):
    for text in ("", "\n \n", "[]"):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(ValueError, match=r"f\.json holds no rows; write one JSON object a line"):
            RowFile(tmp_path / "f.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        RowFile(tmp_path / "gone.json")
    (tmp_path / "f.json").write_bytes(b'[{"problem": "\xff"}]')
    with pytest.raises(LineError, match="not UTF-8"):
        RowFile(tmp_path / "f.json")


def test_parse_rows_returns_rows_and_errors(tmp_path):
    path = write(tmp_path / "rows.jsonl", DETECTION, "{", DETECTION | {"task": "x"}, CHOICE)
    with RowFile(path) as file:
        checked = parse_rows(file)
    assert [row.id for row in checked.rows] == ["d1", "7"]
    assert checked.indices == [0, 3]
    assert [error.location for error in checked.errors] == [f"{path}:2", f"{path}:3"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([DETECTION, DETECTION | {"task": "x"}, 5]))
    with RowFile(path) as file:
        assert [error.location for error in parse_rows(file).errors] == [f"{path}:1: item 2", f"{path}:1: item 3"]


def test_a_byte_order_mark_may_precede_a_file_a_blank_line_and_any_line(tmp_path):
    mark, path = "\ufeff", tmp_path / "rows.jsonl"
    text = json.dumps(DETECTION)
    path.write_text(f"{mark}\n{text}\n{mark}{text}\n{mark}", "utf-8")  # as of files put one after another
    with RowFile(path) as file:
        assert [file.location(index) for index in range(len(file))] == [f"{path}:2", f"{path}:3"]
        assert [file[index].id for index in range(len(file))] == ["d1", "d1"]
    path.write_text(f"{mark}\n[{text}]", "utf-8")
    assert [row.id for row in rows_of(path)] == ["d1"]
    assert Fields.from_json(mark + text, "f:1").keys == DETECTION


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"a": 1, "b": {"a": 2}}', []),
        ('{"a": 1, "b": 2, "a": 1}', ["a"]),
        ('\ufeff{"m": [{"role": "x"}, {"role": "y", "role": "z"}], "m": []}', ["role", "m"]),
        (b'\xef\xbb\xbf{"a": 1, "a": 2}', ["a"]),
    ],
)
def test_repeated_keys_are_listed(text, keys):
    assert repeated_keys(text) == keys


def test_row_files_are_thread_safe(tmp_path):
    with RowFile(write(tmp_path / "rows.jsonl", *({**DETECTION, "id": n} for n in range(300)))) as file:
        wrong: list[int] = []

        def read(start: int) -> None:
            wrong.extend(n for n in range(start, 300, 4) for _ in range(3) if file[n].id != str(n))

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="{<"), max_size=20)
QUESTION = TEXT.filter(str.strip)
PATHS = st.lists(st.from_regex(r"[a-zé ]{1,8}/[a-z]{1,8}\.png", fullmatch=True), max_size=3)
CORNERS = st.tuples(*[st.floats(0, 100)] * 2, *[st.floats(101, 1e5)] * 2)
FRAMES = st.none() | st.builds(Frame, st.integers(1, 9999), st.integers(1, 9999))
NAMES = {"source": TEXT, "split": TEXT, "origin": TEXT}


@st.composite
def scored_rows(draw, folder: Path) -> Row:
    boxes = tuple(draw(st.lists(CORNERS, max_size=4)))
    options = [draw(TEXT) + f"{{box:{index}}}" for index in range(len(boxes))]
    return Row(
        draw(TEXT),
        draw(st.sampled_from([Task.DETECTION, Task.CLASSIFY, Task.MATH])),
        draw(st.sampled_from([Kind.JUDGE, Kind.CHOICE, Kind.OPEN])),
        draw(QUESTION),
        draw(TEXT),
        tuple(str(folder / path) for path in ["first.png", *draw(PATHS)]),
        options=(*options, *draw(st.lists(TEXT, max_size=3))),
        multiple=draw(st.booleans()),
        frame=draw(FRAMES),
        boxes=boxes,
        **{name: draw(text) for name, text in NAMES.items()},
    )


@st.composite
def chats(draw, folder: Path) -> Row:
    turns = [
        Turn(*pair)
        for _ in range(draw(st.integers(1, 3)))
        for pair in zip(("user", "assistant"), draw(st.tuples(TEXT, TEXT)), strict=True)
    ]
    system = [Turn("system", draw(TEXT))] * draw(st.booleans())
    images = tuple(str(folder / path) for path in draw(PATHS))
    names = {name: draw(text) for name, text in NAMES.items()}
    return Row(
        draw(TEXT),
        draw(st.sampled_from(Task).filter(lambda task: task is not Task.DETECTION)),
        Kind.CHAT,
        "",
        "",
        images,
        messages=(*system, *turns),
        **names,
    )


@given(data=st.data())
def test_rows_survive_a_round_trip(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("rows")
    rows = data.draw(st.lists(scored_rows(folder / "images") | chats(folder), min_size=1, max_size=4))
    for path in (folder / "rows.jsonl", folder / "deeper" / "rows.jsonl"):
        assert write_rows(path, rows) == len(rows)
        written = rows_of(path)
        assert [replace(row, images=tuple(map(normpath, row.images))) for row in written] == rows
        assert not list(path.parent.glob("*.partial"))
    for row in rows:
        assert parse_row(Fields(json.loads(json.dumps(row_to_json(row))), "f:1"), image_root=Path("/other")) == row


def test_row_files_can_be_moved_with_their_images(tmp_path):
    row = parse_row(Fields(DETECTION, "f:1"), image_root=tmp_path / "a")
    write_rows(tmp_path / "a" / "rows.jsonl", [row])
    assert json.loads((tmp_path / "a" / "rows.jsonl").read_text()) == DETECTION
    (tmp_path / "a").rename(tmp_path / "b")
    assert rows_of(tmp_path / "b" / "rows.jsonl")[0].images == (str(tmp_path / "b/images/dog.jpg"),)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write(tmp_path / "rows.jsonl", DETECTION)

    def failing():
        yield parse_row(Fields(CHOICE, "f:1"), image_root=tmp_path)
        raise RuntimeError("builder")

    with pytest.raises(RuntimeError, match="builder"):
        write_rows(path, failing())
    assert json.loads(path.read_text()) == DETECTION


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner),
    max_leaves=6,
)


@given(st.sampled_from([DETECTION, CHOICE, CHAT]), st.dictionaries(st.sampled_from(sorted(KEYS)), JSON, max_size=3))
@settings(max_examples=300)
def test_arbitrary_values_parse_or_raise_line_errors(row, changed):
    try:
        parsed = parse_row(Fields.from_json(json.dumps(row | changed), "f:1"), image_root=Path("/"))
    except LineError as error:
        assert error.location == "f:1"
    else:
        assert parse_row(Fields(row_to_json(parsed), "f:1"), image_root=Path("/")) == parsed
