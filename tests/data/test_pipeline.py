"""The global order, its split over hosts and its resumption; buckets and microbatches."""

import json
import re
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from currreft_jax.config import Data, OnBadRow, Source, Stage
from currreft_jax.data.buckets import BatchDims, batch_dims, shape_buckets
from currreft_jax.data.examples import make_example
from currreft_jax.data.microbatches import collate_gold, make_microbatches
from currreft_jax.data.mixture import MixtureError, load_mixture
from currreft_jax.data.packing import BudgetError, max_slots_per_image, row_key
from currreft_jax.data.pipeline import Pipeline, drop_bad_rows, global_order, measure_rows
from currreft_jax.data.processor import load
from currreft_jax.data.prompts import PAPER
from tests import tiny


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load(checkpoint, max_pixels=100 * 28 * 28)


def write(folder: Path, name: str, count: int, **keys) -> str:
    rows = [
        {"id": f"{name}{n}", "task": "math", "kind": "open", "problem": "?" * (1 + n % 5), "solution": str(n), **keys}
        for n in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / f"{name}.jsonl")


def make_pipeline(mixture, processor, data: Data, **settings) -> Pipeline:
    return Pipeline(mixture, processor, PAPER, data, shape_buckets(data, processor, 1), seed=3, **settings)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    sources = [Source(write(folder, "a", 37), weight=2), Source(write(folder, "b", 11), weight=1)]
    return load_mixture([Stage("one", sources)], 0, Data(), 0)


Batch = set[tuple[str, int]]  # (row id, key) of each example


def take(batches, count: int) -> list[Batch]:
    return [{(example.row.id, example.prompt.key) for example in batch} for batch in islice(batches, count)]


def take_from_hosts(hosts: list, count: int) -> list[Batch]:
    return [set().union(*shares) for shares in zip(*(take(host, count) for host in hosts), strict=True)]


def test_a_thousand_batches_are_the_same_when_resumed_on_other_hosts(mixture, processor):
    data = Data(batch_size=2)
    uninterrupted = take(make_pipeline(mixture, processor, data).batches(0), 1000)
    assert all(len(batch) == 2 for batch in uninterrupted)
    first = take(make_pipeline(mixture, processor, data).batches(0), 400)
    hosts = [make_pipeline(mixture, processor, data, host_index=i, num_hosts=2).batches(400) for i in range(2)]
    second = take_from_hosts(hosts, 350)
    third = take(make_pipeline(mixture, processor, data).batches(750), 250)
    assert first + second + third == uninterrupted


def test_rows_come_once_an_epoch_and_sources_by_weight(mixture, processor):
    batches = take(make_pipeline(mixture, processor, Data(batch_size=3)).batches(0), 37)
    counts = [sum(row_id.startswith(name) for batch in batches for row_id, _ in batch) for name in "ab"]
    assert counts == [74, 37]  # two epochs of a, three and a part of b
    from_a = [example for batch in batches for example in batch if example[0].startswith("a")]
    assert set(from_a) == {(f"a{n}", row_key(f"a{n}", epoch)) for n in range(37) for epoch in range(2)}


def test_the_order_depends_on_the_seed(mixture, processor):
    orders = [[ref.index for ref in islice(iter(global_order(mixture, seed)), 30)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_sources_of_equal_size_are_shuffled_apart(tmp_path):
    sources = [Source(write(tmp_path, name, 30)) for name in "ab"]
    mixture = load_mixture([Stage("one", sources)], 0, Data(), 0)
    refs = list(islice(iter(global_order(mixture, 0)), 60))
    first, second = ([ref.index for ref in refs if ref.source == index] for index in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second


def test_epochs_are_shuffled_anew(mixture):
    refs = [ref for ref in islice(iter(global_order(mixture, 0)), 111) if ref.source == 0]
    assert [ref.occurrence for ref in refs] == [0] * 37 + [1] * 37
    assert [ref.index for ref in refs[:37]] != [ref.index for ref in refs[37:]]


def test_errors_in_threads_name_file_and_line(tmp_path, processor):
    (tmp_path / "bad.png").write_bytes(b"no image")
    mixture = load_mixture([Stage("one", [Source(write(tmp_path, "a", 5, image="bad.png"))])], 0, Data(), 0)
    with pytest.raises(MixtureError, match=r"a\.jsonl:\d: .*bad\.png: not a readable image"):
        next(make_pipeline(mixture, processor, Data(batch_size=2)).batches(0))


def test_rows_over_the_largest_bucket_raise_with_file_and_line(mixture, processor):
    data = Data(batch_size=2, prompt_lengths=(16,))
    with pytest.raises(MixtureError, match=r"\.jsonl:\d+: data\.prompt_lengths: \d+ needed"):
        next(make_pipeline(mixture, processor, data).batches(0))


def test_drop_bad_rows(tmp_path, processor):
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
    mixture = load_mixture([Stage("one", [Source(str(tmp_path / "a.jsonl"))])], 0, data, 0)
    buckets = shape_buckets(data, processor, 1)
    remaining = drop_bad_rows(mixture, processor, PAPER, data, buckets, with_answer=True)
    assert [source.indices.tolist() for source in remaining.sources] == [[0, 4]]
    assert [error.location.rpartition(":")[2] for error in remaining.errors] == ["2", "3", "4"]
    assert remaining.excluded == {"unusable": 3}
    strict = Data(on_bad_row=OnBadRow.SKIP, max_bad_rows=2, prompt_lengths=(512,), completion_lengths=(64,))
    with pytest.raises(MixtureError, match=r"3 rows cannot be used \(more than data\.max_bad_rows"):
        drop_bad_rows(mixture, processor, PAPER, strict, buckets, with_answer=True)


def test_a_batch_that_does_not_divide_into_hosts_raises(mixture, processor):
    with pytest.raises(ValueError, match="does not divide into 3 hosts"):
        make_pipeline(mixture, processor, Data(batch_size=4), num_hosts=3)


def test_batches_get_the_smallest_buckets_that_fit(processor):
    data = Data(prompt_lengths=(64, 128), completion_lengths=(8, 32))
    buckets = shape_buckets(data, processor, 2)
    largest = 2 * max_slots_per_image(processor.max_pixels, processor.config.vision)
    slots = sorted({shape.slots for shape in buckets.shapes})
    assert slots[0] == 0 and slots[-1] == largest
    assert all(large <= max(small + 1, 1.34 * small) for small, large in pairwise(slots[1:]))
    shape, completion_length = buckets.fit(BatchDims(65, 0, 0, 8))
    assert (shape.length, shape.slots, shape.max_slots_per_image, completion_length) == (128, 0, 0, 8)
    for dims, name in [
        (BatchDims(129, 0, 0, 1), "data.prompt_lengths"),
        (BatchDims(1, largest + 1, 1, 1), "data.slots"),
        (BatchDims(1, 1, 1, 33), "data.completion_lengths"),
    ]:
        with pytest.raises(BudgetError, match=name):
            buckets.fit(dims)


def test_microbatches_have_similar_lengths_and_hold_all_examples(mixture, processor):
    examples = next(make_pipeline(mixture, processor, Data(batch_size=16), with_answer=True).batches(0))
    microbatches = make_microbatches(examples, processor.config, 2, 4)
    assert [len(microbatch) for microbatch in microbatches] == [4] * 4
    ids = {example.row.id for microbatch in microbatches for example in microbatch}
    assert ids == {example.row.id for example in examples}
    lengths = [[len(e.prompt.tokens) + len(e.completion_tokens) for e in microbatch] for microbatch in microbatches]
    assert all(max(shorter) <= min(longer) for shorter, longer in pairwise(lengths))


def test_gold_completions_are_padded_on_the_right_and_masked(mixture, processor):
    examples = next(make_pipeline(mixture, processor, Data(batch_size=4), with_answer=True).batches(0))
    dims = batch_dims(examples, processor.config, 2)
    buckets = shape_buckets(Data(completion_lengths=(64,)), processor, 2)
    batch, mask = collate_gold(examples, processor.config, *buckets.fit(dims), 2)
    assert batch.tokens.shape == mask.shape == (4, 1, 64)
    for index, example in enumerate(examples):
        text = processor.tokenizer.decode(batch.tokens[index, 0][mask[index, 0]])
        assert text == f"<answer>{example.row.solution}</answer><|im_end|>"
        length = len(example.completion_tokens)
        assert mask[index, 0, :length].all() and not mask[index, 0, length:].any()
    keys = [example.prompt.key & 0xFFFFFFFF for example in examples]
    np.testing.assert_array_equal(batch.prompts.key[:, 1], keys)
    partial_mask = np.arange(len(examples[0].completion_tokens)) % 2 == 0  # as of a dialogue
    masked = [replace(examples[0], loss_mask=partial_mask), *examples[1:]]
    mask = collate_gold(masked, processor.config, *buckets.fit(dims), 2)[1]
    np.testing.assert_array_equal(mask[0, 0, : len(partial_mask)], partial_mask)


def test_rows_are_measured_as_they_are_read(tmp_path, processor):
    """Of images, the heads of their files tell the sizes; also turned ones, and transparent ones."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    tiny.picture(120, 60).save(tmp_path / "turned.jpg", exif=turned)
    tiny.picture(300, 200).save(tmp_path / "large.webp")
    tiny.picture(40, 90).convert("RGBA").save(tmp_path / "alpha.png")
    names = ("turned.jpg", "large.webp", "alpha.png")
    rows = [
        {
            "id": name,
            "task": "detection",
            "kind": "open",
            "problem": "where?",
            "solution": "[[1, 2, 30, 40]]",
            "image": name,
        }
        for name in names
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = load_mixture([Stage("one", [Source(str(tmp_path / "a.jsonl"))])], 0, Data(), 0)
    buckets = shape_buckets(Data(), processor, 1)
    ((kept, sizes),) = measure_rows([mixture], processor, PAPER, Data(), buckets, with_answer=True)
    file = mixture.sources[0].file
    assert kept is mixture and len(sizes) == 3
    for index in range(3):
        example = make_example(file[index], processor, PAPER, location="row", with_answer=True)
        assert sizes[id(file), index] == batch_dims([example], processor.config, 1), names[index]
        measured = processor.measure_image(str(tmp_path / names[index]), "row")
        assert replace(measured, patches=example.prompt.images[0].patches) == example.prompt.images[0]
    (tmp_path / "large.webp").write_bytes(b"no image")
    with pytest.raises(MixtureError, match=r"a\.jsonl:2: .*large\.webp: not a readable image"):
        measure_rows([mixture], processor, PAPER, Data(), buckets, with_answer=True)
    skip = Data(on_bad_row=OnBadRow.SKIP)
    ((kept, sizes),) = measure_rows([mixture], processor, PAPER, skip, buckets, with_answer=True)
    assert kept.excluded == {"unusable": 1} and [index for _, index in sizes] == [0, 2]


def test_rows_that_are_too_long_are_told_in_one_line_with_what_the_longest_needs(tmp_path, processor):
    rows = [
        {"id": str(n), "task": "math", "kind": "open", "problem": "?" * length, "solution": "1" * answer}
        for n, (length, answer) in enumerate([(5, 1), (300, 1), (500, 90), (5, 80)])
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = load_mixture([Stage("one", [Source(str(tmp_path / "a.jsonl"))])], 0, Data(), 0)
    data = Data(prompt_lengths=(200, 260), completion_lengths=(64,))
    buckets = shape_buckets(data, processor, 1)
    long = re.escape(f"too long: 3 rows, the first {tmp_path / 'a.jsonl'}:2; the longest prompt has ")
    most = r"(\d+) tokens, where 260 are the most, the longest gold answer has (\d+) tokens, where 64 are the most: "
    flags = r"set --config\.data\.prompt_lengths=200,260,(\d+) --config\.data\.completion_lengths=64,(\d+) \(mend"
    with pytest.raises(MixtureError, match=f"{long}{most}{flags}") as refused:
        measure_rows([mixture], processor, PAPER, data, buckets, with_answer=True)
    match = re.search(most + flags, str(refused.value))
    assert match and len(str(refused.value).splitlines()) == 1
    prompt, answer, *wanted = map(int, match.groups())
    assert [prompt <= wanted[0] < prompt + 64, answer <= wanted[1] < answer + 64] == [True, True]
    enough = replace(data, prompt_lengths=(wanted[0],), completion_lengths=(wanted[1],))
    ((kept, _),) = measure_rows(
        [mixture], processor, PAPER, enough, shape_buckets(enough, processor, 1), with_answer=True
    )
    assert kept is mixture
