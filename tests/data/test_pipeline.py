"""The global order, its shards and its resumption; shapes and microbatches."""

import json
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from currreft_jax.config import Data, OnBadRow, Source, Stage
from currreft_jax.data import pipeline, processor
from currreft_jax.data.mixture import MixtureError, mixture
from currreft_jax.data.packing import BudgetError, max_slots_per_image, row_key
from currreft_jax.data.prompts import PAPER
from tests import tiny


@pytest.fixture(scope="module")
def reader(checkpoint):
    return processor.load(checkpoint, max_pixels=100 * 28 * 28)


def write(folder: Path, name: str, count: int, **keys) -> str:
    rows = [
        {"id": f"{name}{n}", "task": "math", "kind": "open", "problem": "?" * (1 + n % 5), "solution": str(n), **keys}
        for n in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / f"{name}.jsonl")


def source(mixed, reader, data: Data, **settings) -> pipeline.Pipeline:
    return pipeline.Pipeline(mixed, reader, PAPER, data, pipeline.ladders(data, reader, 1), seed=3, **settings)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    sources = [Source(write(folder, "a", 37), weight=2), Source(write(folder, "b", 11), weight=1)]
    return mixture([Stage("one", sources)], 0, Data(), 0)


def met(batches, count: int) -> list[set[tuple[str, int]]]:
    return [{(it.row.id, it.prompt.key) for it in batch} for batch in islice(batches, count)]


def together(hosts: list, count: int) -> list[set[tuple[str, int]]]:
    return [set().union(*parts) for parts in zip(*(met(host, count) for host in hosts), strict=True)]


def test_a_thousand_batches_are_the_same_in_one_go_and_interrupted(mixed, reader):
    data = Data(batch_size=2)
    whole = met(source(mixed, reader, data).batches(0), 1000)
    assert all(len(batch) == 2 for batch in whole)
    first = met(source(mixed, reader, data).batches(0), 400)
    two = [source(mixed, reader, data, host=host, hosts=2).batches(400) for host in range(2)]
    then = together(two, 350)
    last = met(source(mixed, reader, data).batches(750), 250)
    assert first + then + last == whole


def test_rows_are_met_once_an_epoch_and_by_weight(mixed, reader):
    batches = met(source(mixed, reader, Data(batch_size=3)).batches(0), 37)
    counts = [sum(it[0].startswith(name) for batch in batches for it in batch) for name in "ab"]
    assert counts == [74, 37]  # two epochs of the one; three and a part of the other
    a = [it for batch in batches for it in batch if it[0].startswith("a")]
    assert set(a) == {(f"a{n}", row_key(f"a{n}", epoch)) for n in range(37) for epoch in range(2)}


def test_another_seed_is_another_order(mixed, reader):
    orders = [[place.index for place in islice(iter(pipeline.order(mixed, seed)), 30)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_epochs_are_shuffled_anew(mixed):
    places = [place for place in islice(iter(pipeline.order(mixed, 0)), 111) if place.part == 0]
    assert [it.occurrence for it in places] == [0] * 37 + [1] * 37
    assert [it.index for it in places[:37]] != [it.index for it in places[37:]]


def test_a_row_that_fails_in_a_thread_names_its_file_and_line(tmp_path, reader):
    (tmp_path / "bad.png").write_bytes(b"no image")
    mixed = mixture([Stage("one", [Source(write(tmp_path, "a", 5, image="bad.png"))])], 0, Data(), 0)
    with pytest.raises(MixtureError, match=r"a\.jsonl:\d: .*bad\.png: not a readable image"):
        next(source(mixed, reader, Data(batch_size=2)).batches(0))


def test_a_row_that_is_too_long_names_its_line(mixed, reader):
    data = Data(batch_size=2, prompt_lengths=(16,))
    with pytest.raises(MixtureError, match=r"\.jsonl:\d+: data\.prompt_lengths: \d+ needed"):
        next(source(mixed, reader, data).batches(0))


def test_rows_that_cannot_be_shown_are_left_out_when_asked(tmp_path, reader):
    tiny.picture(60, 60).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [
        {"id": str(n), "task": "math", "kind": "open", "problem": problem, "solution": "1", "image": image}
        for n, (image, problem) in enumerate(
            [("good.png", "?"), ("bad.png", "?"), ("good.png", "?" * 600), ("missing.png", "?"), ("good.png", "!")]
        )
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(on_bad_row=OnBadRow.SKIP, prompt_lengths=(512,), completion_lengths=(64,))
    mixed = mixture([Stage("one", [Source(str(tmp_path / "a.jsonl"))])], 0, data, 0)
    ladders = pipeline.ladders(data, reader, 1)
    found = pipeline.usable(mixed, reader, PAPER, data, ladders, with_answer=True)
    assert [part.indices.tolist() for part in found.parts] == [[0, 4]]
    assert [error.where.rpartition(":")[2] for error in found.errors] == ["2", "3", "4"]
    assert found.left_out == {"unusable": 3}
    few = Data(on_bad_row=OnBadRow.SKIP, max_bad_rows=2, prompt_lengths=(512,), completion_lengths=(64,))
    with pytest.raises(MixtureError, match=r"3 bad rows, more than data\.max_bad_rows"):
        pipeline.usable(mixed, reader, PAPER, few, ladders, with_answer=True)


def test_hosts_share_a_batch_evenly_or_not_at_all(mixed, reader):
    with pytest.raises(ValueError, match="does not divide into 3 hosts"):
        source(mixed, reader, Data(batch_size=4), hosts=3)


def test_a_batch_takes_the_smallest_shape_that_holds_it(reader):
    data = Data(prompt_lengths=(64, 128), completion_lengths=(8, 32))
    ladders = pipeline.ladders(data, reader, 2)
    top = 2 * max_slots_per_image(reader.max_pixels, reader.config.vision)
    assert ladders.slots[0] == 0 and ladders.slots[-1] == top
    assert all(
        after <= max(before + 1, 1.34 * before)
        for before, after in zip(ladders.slots[1:], ladders.slots[2:], strict=False)
    )
    shape, completion = ladders.shape(pipeline.Needs(65, 0, 0, 8))
    assert (shape.length, shape.slots, shape.reach, completion) == (128, 0, 0, 8)
    for needs, name in [
        (pipeline.Needs(129, 0, 0, 1), "data.prompt_lengths"),
        (pipeline.Needs(1, top + 1, 1, 1), "data.slots"),
        (pipeline.Needs(1, 1, 1, 33), "data.completion_lengths"),
    ]:
        with pytest.raises(BudgetError, match=name):
            ladders.shape(needs)


def test_microbatches_are_of_similar_length_and_lose_nothing(mixed, reader):
    examples = next(source(mixed, reader, Data(batch_size=16), with_answer=True).batches(0))
    parts = pipeline.arranged(examples, reader.config, 2, 4)
    assert [len(part) for part in parts] == [4] * 4
    assert {it.row.id for part in parts for it in part} == {it.row.id for it in examples}
    sizes = [[len(it.prompt.tokens) + len(it.tokens) for it in part] for part in parts]
    assert all(max(before) <= min(after) for before, after in pairwise(sizes))


def test_gold_completions_are_padded_on_the_right_and_masked(mixed, reader):
    examples = next(source(mixed, reader, Data(batch_size=4), with_answer=True).batches(0))
    needs = pipeline.needs(examples, reader.config, 2)
    ladders = pipeline.ladders(Data(completion_lengths=(64,)), reader, 2)
    batch, mask = pipeline.gold_batch(examples, reader.config, *ladders.shape(needs), 2)
    assert batch.tokens.shape == mask.shape == (4, 1, 64)
    for row, it in enumerate(examples):
        text = reader.tokenizer.decode(batch.tokens[row, 0][mask[row, 0]])
        assert text == f"<answer>{it.row.solution}</answer><|im_end|>"
        assert mask[row, 0, : len(it.tokens)].all() and not mask[row, 0, len(it.tokens) :].any()
    np.testing.assert_array_equal(batch.prompts.key[:, 1], [it.prompt.key & 0xFFFFFFFF for it in examples])
