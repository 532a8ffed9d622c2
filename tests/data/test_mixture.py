"""Sources, sampled, filtered and weighted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from currreft_jax.config import Data, Kind, OnBadRow, Source, Stage, Task
from currreft_jax.data.mixture import MixtureError, mixture, sample


def write(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def row(number: int, kind: str = "open", task: str = "math", **keys) -> dict:
    return {"id": f"{kind}-{number}", "kind": kind, "task": task, "problem": "?", "solution": "1", **keys}


def ids(parts) -> list[list[str]]:
    return [[part.file[int(i)].id for i in part.indices] for part in parts]


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("3", range(3)),
        ("20%", range(2)),
        ("end:2", range(8, 10)),
        ("end:30%", range(7, 10)),
    ],
)
def test_sampling(strategy, taken):
    assert sample(10, strategy, 0, "a").tolist() == list(taken)


def test_a_random_sample_is_the_seeds_and_the_files():
    taken = sample(1000, "random:10%", 0, "a")
    assert len(set(taken.tolist())) == 100
    assert taken.tolist() == sorted(taken.tolist()) == sample(1000, "random:100", 0, "a").tolist()
    assert taken.tolist() != sample(1000, "random:100", 1, "a").tolist()
    assert taken.tolist() != sample(1000, "random:100", 0, "b").tolist()


@pytest.mark.parametrize("strategy", ["first", "first:11", "random:0", "last:3", "1.5%", ""])
def test_a_strategy_that_cannot_be_meant_is_refused(strategy):
    with pytest.raises(MixtureError, match=r"a: sample .*(write|take)"):
        sample(10, strategy, 0, "a")


def test_the_authors_yaml_and_their_rows_load(tmp_path):
    rows = [{"problem": "?", "solution": f"<answer>{n}</answer>", "task": "math"} for n in range(4)]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows[:2]))
    (tmp_path / "mix.yaml").write_text(
        "train_datasets:\n"
        "  - json_path: a.jsonl\n    sampling_strategy: first:50%\n"
        "  - json_path: b.json\n    sampling_strategy: all\n"
    )
    found = mixture([Stage("one", [Source(str(tmp_path / "mix.yaml"), kind=Kind.OPEN)])], 0, Data(), 0)
    assert [part.indices.tolist() for part in found.parts] == [[0, 1], [0, 1]]
    assert [part.weight for part in found.parts] == [0.5, 0.5]


def test_files_of_a_yaml_weigh_as_many_rows_as_they_have(tmp_path):
    write(tmp_path / "a.jsonl", [row(n) for n in range(3)])
    write(tmp_path / "b.jsonl", [row(n, id=f"b{n}") for n in range(1)])
    listed = "".join(f"  - {{json_path: {name}.jsonl}}\n" for name in "ab")
    (tmp_path / "mix.yml").write_text("train_datasets:\n" + listed)
    found = mixture([Stage("one", [Source(str(tmp_path / "mix.yml"))])], 0, Data(), 0)
    assert [part.weight for part in found.parts] == [0.75, 0.25]
    with pytest.raises(MixtureError, match=r"mix\.yml: sample 'first:1'; write how each file is sampled into the YAML"):
        mixture([Stage("one", [Source(str(tmp_path / "mix.yml"), sample="first:1")])], 0, Data(), 0)


def test_a_yaml_has_the_weight_of_its_source(tmp_path):
    write(tmp_path / "a.jsonl", [row(n) for n in range(2)])
    other = write(tmp_path / "b.jsonl", [row(n, id=f"b{n}") for n in range(2)])
    (tmp_path / "mix.yml").write_text("train_datasets:\n  - {json_path: a.jsonl}\n")
    sources = [Source(str(tmp_path / "mix.yml"), weight=3), Source(other, weight=1)]
    found = mixture([Stage("one", sources)], 0, Data(), 0)
    assert [part.weight for part in found.parts] == [0.75, 0.25]


@pytest.mark.parametrize("text", ["a: [", "rows: 3", "train_datasets: [a.jsonl]"])
def test_another_yaml_is_refused_by_name(tmp_path, text):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(MixtureError, match=r"mix\.yaml"):
        mixture([Stage("one", [Source(str(tmp_path / "mix.yaml"))])], 0, Data(), 0)


def test_a_stage_takes_its_kinds_and_tasks(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0), row(1, "judge"), row(2, "judge", "classify"), row(3, "choice")])
    found = mixture([Stage("one", [Source(file)], kinds=(Kind.JUDGE,), tasks=(Task.MATH,))], 0, Data(), 0)
    assert ids(found.parts) == [["judge-1"]]
    assert found.left_out == {"kind open": 1, "kind choice": 1, "task classify": 1}


def test_nothing_left_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0)])
    with pytest.raises(MixtureError, match=r"stage one: no rows are left of .*a\.jsonl.*kind open"):
        mixture([Stage("one", [Source(file)], kinds=(Kind.JUDGE,))], 0, Data(), 0)


def test_rows_that_are_always_right_or_wrong_are_left_out(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(n) for n in range(4)])
    rates = write(
        tmp_path / "rates.jsonl", [{"id": f"open-{n}", "pass_rate": rate} for n, rate in enumerate((0, 0.5, 1))]
    )
    found = mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=rates), 0)
    assert ids(found.parts) == [["open-1", "open-3"]]  # the last was never measured
    assert found.left_out == {"pass rate": 2}
    bad = write(tmp_path / "bad.jsonl", [{"id": "open-0"}])
    with pytest.raises(MixtureError, match=r"bad\.jsonl:1: write"):
        mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=bad), 0)
    other = write(tmp_path / "other.jsonl", [{"id": "elsewhere", "pass_rate": 0.5}])
    with pytest.raises(MixtureError, match=r"other\.jsonl: names no row of stage one"):
        mixture([Stage("one", [Source(file)])], 0, Data(pass_rates=other), 0)


def test_replay_mixes_in_the_stages_before(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [row(n, id=f"{name}{n}") for n in range(2)]) for name in "abc"]
    stages = [
        Stage("one", [Source(files[0])]),
        Stage("two", [Source(files[1], weight=3), Source(files[2])], replay=0.2),
    ]
    found = mixture(stages, 1, Data(), 0)
    assert [part.file.path.name for part in found.parts] == ["b.jsonl", "c.jsonl", "a.jsonl"]
    np.testing.assert_allclose([part.weight for part in found.parts], [0.6, 0.2, 0.2])
    (tmp_path / "a.jsonl").write_text("no json\n")  # nobody looks at it without replay
    assert len(mixture([stages[0], replace(stages[1], replay=0.0)], 1, Data(), 0).parts) == 2
    write(tmp_path / "a.jsonl", [row(0, "judge")])
    with pytest.raises(MixtureError, match=r"replay is 0\.2, but the stages before it have no rows left"):
        mixture([replace(stages[0], kinds=(Kind.OPEN,)), stages[1]], 1, Data(), 0)


def test_bad_rows_stop_the_run_or_are_counted(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(0), "no json", row(2, "riddle"), row(3)])
    stages = [Stage("one", [Source(file)])]
    with pytest.raises(MixtureError, match=r"(?s)2 rows.*a\.jsonl:2: not JSON.*a\.jsonl:3: \"kind\" is \"riddle\""):
        mixture(stages, 0, Data(), 0)
    found = mixture(stages, 0, Data(on_bad_row=OnBadRow.SKIP), 0)
    assert ids(found.parts) == [["open-0", "open-3"]]
    assert [error.where.rpartition(":")[2] for error in found.errors] == ["2", "3"]
    with pytest.raises(MixtureError, match=r"more than data\.max_bad_rows"):
        mixture(stages, 0, Data(on_bad_row=OnBadRow.SKIP, max_bad_rows=1), 0)


def test_the_fingerprint_follows_rows_and_weights(tmp_path):
    file = write(tmp_path / "a.jsonl", [row(n) for n in range(4)])

    def fingerprint(**settings) -> str:
        return mixture([Stage("one", [Source(file, **settings)])], 0, Data(), 0).fingerprint()

    first = fingerprint()
    assert first == fingerprint() != fingerprint(sample="first:3")
    write(tmp_path / "a.jsonl", [row(n, problem="mended") for n in range(4)])
    assert fingerprint() == first
    write(tmp_path / "a.jsonl", [row(n, id=f"other-{n}") for n in range(4)])
    assert fingerprint() != first
