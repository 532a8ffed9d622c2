"""Mixtures: sampling, filters, replay, weights and the fingerprint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from currreft_jax.config import Data, Kind, OnBadRow, Source, Stage, Task
from currreft_jax.data.fields import LineError
from currreft_jax.data.mixture import MixtureError, load_mixture, read_pass_rates, sample_indices
from currreft_jax.evaluation.answers import Answer, answer_line


def write(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def row(index: int, kind: str = "open", task: str = "math", **keys) -> dict:
    return {"id": f"{kind}-{index}", "kind": kind, "task": task, "problem": "?", "solution": "1", **keys}


def ids(sources) -> list[list[str]]:
    return [[source.file[int(i)].id for i in source.indices] for source in sources]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("3", range(3)),
        ("20%", range(2)),
        ("end:2", range(8, 10)),
        ("end:30%", range(7, 10)),
    ],
)
def test_sampling_strategies(strategy, expected):
    assert sample_indices(10, strategy, 0, "a").tolist() == list(expected)


def test_random_samples_depend_on_seed_and_file_name():
    taken = sample_indices(1000, "random:10%", 0, "a")
    assert len(set(taken.tolist())) == 100
    assert taken.tolist() == sorted(taken.tolist()) == sample_indices(1000, "random:100", 0, "a").tolist()
    assert taken.tolist() != sample_indices(1000, "random:100", 1, "a").tolist()
    assert taken.tolist() != sample_indices(1000, "random:100", 0, "b").tolist()


@pytest.mark.parametrize("strategy", ["first", "first:11", "random:0", "last:3", "1.5%", ""])
def test_invalid_sampling_strategies_raise(strategy):
    with pytest.raises(MixtureError, match=r"a: sample .*(write|take)"):
        sample_indices(10, strategy, 0, "a")


def test_authors_yaml_mixtures_load(tmp_path):
    rows = [{"problem": "?", "solution": f"<answer>{n}</answer>", "task": "math"} for n in range(4)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "mix.yaml").write_text(
        "train_datasets:\n"
        "  - json_path: a.jsonl\n    sampling_strategy: first:50%\n"
        "  - json_path: b.json\n    sampling_strategy: all\n"
    )
    mixture = load_mixture([Stage("one", [Source(str(tmp_path / "mix.yaml"), kind=Kind.OPEN)])], 0, Data(), 0)
    assert [source.indices.tolist() for source in mixture.sources] == [[0, 1], [0, 1]]
    assert [source.weight for source in mixture.sources] == [0.5, 0.5]


def test_files_of_a_yaml_mixture_are_weighted_by_their_rows(tmp_path):
    write(tmp_path / "a.jsonl", [row(n) for n in range(3)])
    write(tmp_path / "b.jsonl", [row(n, id=f"b{n}") for n in range(1)])
    entries = "".join(f"  - {{json_path: {name}.jsonl}}\n" for name in "ab")
    (tmp_path / "mix.yml").write_text("train_datasets:\n" + entries)
    mixture = load_mixture([Stage("one", [Source(str(tmp_path / "mix.yml"))])], 0, Data(), 0)
    assert [source.weight for source in mixture.sources] == [0.75, 0.25]
    with pytest.raises(MixtureError, match=r"mix\.yml: sample 'first:1'; write how each file is sampled into the YAML"):
        load_mixture([Stage("one", [Source(str(tmp_path / "mix.yml"), sample="first:1")])], 0, Data(), 0)


def test_a_yaml_has_the_weight_of_its_source(tmp_path):
    write(tmp_path / "a.jsonl", [row(n) for n in range(2)])
    other = write(tmp_path / "b.jsonl", [row(n, id=f"b{n}") for n in range(2)])
    (tmp_path / "mix.yml").write_text("train_datasets:\n  - {json_path: a.jsonl}\n")
    sources = [Source(str(tmp_path / "mix.yml"), weight=3), Source(other, weight=1)]
    mixture = load_mixture([Stage("one", sources)], 0, Data(), 0)
    assert [source.weight for source in mixture.sources] == [0.75, 0.25]


@pytest.mark.parametrize("text", ["a: [", "rows: 3", "train_datasets: [a.jsonl]"])
def test_malformed_yaml_raises_with_the_file_name(tmp_path, text):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(MixtureError, match=r"mix\.yaml"):
        load_mixture([Stage("one", [Source(str(tmp_path / "mix.yaml"))])], 0, Data(), 0)


def test_rows_are_filtered_by_kind_and_task(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0), row(1, "judge"), row(2, "judge", "classify"), row(3, "choice")])
    mixture = load_mixture([Stage("one", [Source(file)], kinds=(Kind.JUDGE,), tasks=(Task.MATH,))], 0, Data(), 0)
    assert ids(mixture.sources) == [["judge-1"]]
    assert mixture.excluded == {"kind open": 1, "kind choice": 1, "task classify": 1}


def test_an_empty_mixture_raises(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0)])
    with pytest.raises(
        MixtureError,
        match=r"stage one takes judge rows, and no rows are left of .*a\.jsonl \(left out: 1 row by kind open\)",
    ):
        load_mixture([Stage("one", [Source(file)], kinds=(Kind.JUDGE,))], 0, Data(), 0)


def test_rows_are_filtered_by_pass_rate(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(n) for n in range(4)])
    pass_rates = write(
        tmp_path / "rates.jsonl", [{"id": f"open-{n}", "pass_rate": rate} for n, rate in enumerate((0, 0.5, 1))]
    )
    mixture = load_mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=pass_rates), 0)
    assert ids(mixture.sources) == [["open-1", "open-3"]]  # the last has no pass rate
    assert mixture.excluded == {"pass rate": 2}
    bad = write(tmp_path / "bad.jsonl", [{"id": "open-0"}])
    with pytest.raises(MixtureError, match=r"bad\.jsonl:1: write"):
        load_mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=bad), 0)
    other = write(tmp_path / "other.jsonl", [{"id": "elsewhere", "pass_rate": 0.5}])
    with pytest.raises(MixtureError, match=r"other\.jsonl: names no row of stage one"):
        load_mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=other), 0)


def test_replay_mixes_in_earlier_stages(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [row(n, id=f"{name}{n}") for n in range(2)]) for name in "abc"]
    stages = [
        Stage("one", [Source(files[0])]),
        Stage("two", [Source(files[1], weight=3), Source(files[2])], replay=0.2),
    ]
    mixture = load_mixture(stages, 1, Data(), 0)
    assert [source.file.path.name for source in mixture.sources] == ["b.jsonl", "c.jsonl", "a.jsonl"]
    np.testing.assert_allclose([source.weight for source in mixture.sources], [0.6, 0.2, 0.2])
    (tmp_path / "a.jsonl").write_text("no json\n")  # not read without replay
    assert len(load_mixture([stages[0], replace(stages[1], replay=0.0)], 1, Data(), 0).sources) == 2
    write(tmp_path / "a.jsonl", [row(0, "judge")])
    with pytest.raises(MixtureError, match=r"replay is 0\.2, but the stages before it have no rows left"):
        load_mixture([replace(stages[0], kinds=(Kind.OPEN,)), stages[1]], 1, Data(), 0)


def test_malformed_rows_raise_or_are_skipped(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0), "no json", row(2, "riddle"), row(3)])
    stages = [Stage("one", [Source(file)])]
    with pytest.raises(MixtureError, match=r"(?s)2 rows.*a\.jsonl:2: not JSON.*a\.jsonl:3: \"kind\" is \"riddle\""):
        load_mixture(stages, 0, Data(), 0)
    mixture = load_mixture(stages, 0, Data(on_bad_row=OnBadRow.SKIP), 0)
    assert ids(mixture.sources) == [["open-0", "open-3"]]
    assert [error.location.rpartition(":")[2] for error in mixture.errors] == ["2", "3"]
    with pytest.raises(MixtureError, match=r"more than data\.max_bad_rows"):
        load_mixture(stages, 0, Data(on_bad_row=OnBadRow.SKIP, max_bad_rows=1), 0)


def test_rows_are_left_out_by_source_and_index(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [row(n, id=f"{name}{n}") for n in range(3)]) for name in "ab"]
    data = Data(on_bad_row=OnBadRow.SKIP, max_bad_rows=4)
    mixture = load_mixture([Stage("one", [Source(file) for file in files])], 0, data, 0)
    errors = {ref: LineError(f"f:{ref}", "odd") for ref in [(0, 1), (1, 0), (1, 1), (1, 2)]}
    remaining = mixture.without(errors, "odd", data)
    assert ids(remaining.sources) == [["a0", "a2"]] == [list(source.ids) for source in remaining.sources]
    assert (remaining.excluded, len(remaining.errors)) == ({"odd": 4}, 4)
    assert remaining.fingerprint() != mixture.fingerprint() == mixture.without({}, "odd", Data()).fingerprint()
    for settings, message in (
        (
            Data(),
            r"4 rows cannot be used \(mend them, or set data.on_bad_row to skip\):\n  f:\(0, 1\): odd \(4 rows\)$",
        ),
        (replace(data, max_bad_rows=3), r"4 rows cannot be used \(more than data.max_bad_rows \(3\)\)"),
    ):
        with pytest.raises(MixtureError, match=message):
            mixture.without(errors, "odd", settings)
    apart = {ref: LineError(f"f:{ref}", "odd" if ref[0] else "even") for ref in errors}
    with pytest.raises(MixtureError, match=r":\n  f:\(0, 1\): even\n  f:\(1, 0\): odd \(3 rows\)$"):
        mixture.without(apart, "odd", Data())
    with pytest.raises(MixtureError, match=r"no row is left: f:\(0, 0\): odd"):
        mixture.without(
            {(k, n): LineError(f"f:{k, n}", "odd") for k in (0, 1) for n in range(3)},
            "odd",
            Data(on_bad_row=OnBadRow.SKIP),
        )


def test_answers_of_evaluate_are_pass_rates(tmp_path):
    of_four = ("x",) * 4, (0, 1, 1, 1), (1,) * 4, (0.5,) * 4, (1.0,) * 4, (None,) * 4, ("",) * 4, (True,) * 4
    answer = Answer("a", "", Task.MATH, Kind.OPEN, *of_four)
    unanswered = Answer("b", "", Task.MATH, Kind.OPEN, *[()] * 8, failure="no server")
    (tmp_path / "answers.jsonl").write_text(answer_line(answer) + answer_line(unanswered))
    assert read_pass_rates(tmp_path / "answers.jsonl") == {"a": 0.75}  # by the strict reading; "b" has none
    (tmp_path / "answers.jsonl").write_text('{"row": "a", "strict": [1, "yes"]}')
    with pytest.raises(MixtureError, match=r"answers\.jsonl:1: write .*, or an answer of evaluate"):
        read_pass_rates(tmp_path / "answers.jsonl")


def test_a_byte_order_mark_may_precede_pass_rates(tmp_path):
    (tmp_path / "rates.jsonl").write_text('{"id": "a\u2028b", "pass_rate": 0.5}\n', "utf-8-sig")
    assert read_pass_rates(tmp_path / "rates.jsonl") == {"a\u2028b": 0.5}


def test_the_fingerprint_depends_on_ids_indices_and_weights_not_content(tmp_path):
    file, other = write(tmp_path / "a.jsonl", [row(n) for n in range(4)]), write(tmp_path / "b.jsonl", [row(9)])

    def fingerprint(**settings) -> str:
        sources = [Source(file, **settings), Source(other)]
        return load_mixture([Stage("one", sources)], 0, Data(), 0).fingerprint()

    first = fingerprint()
    assert first == fingerprint() != fingerprint(sample="first:3")
    assert fingerprint(weight=2.0) != first  # other rows come next
    write(tmp_path / "a.jsonl", [row(n, problem="mended") for n in range(4)])
    assert fingerprint() == first
    write(tmp_path / "a.jsonl", [row(n, id=f"other-{n}") for n in range(4)])
    assert fingerprint() != first
