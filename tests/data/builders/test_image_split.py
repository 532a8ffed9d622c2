"""Splits that share no image."""

from pathlib import Path

import pytest

from currreft_jax.config import Kind, Task
from currreft_jax.data.builders.image_split import describe_split, group_keys, shared_keys, split_by_image
from currreft_jax.structs import Row
from tests.data.builders.dataset_files import write_image

FRACTIONS = {"train": 0.7, "test": 0.3}


def rows_on(images):
    return [Row(str(n), Task.MATH, Kind.OPEN, f"q{n}", "1", tuple(paths)) for n, paths in enumerate(images)]


def test_no_image_is_in_two_splits(tmp_path):
    paths = [str(write_image(tmp_path / f"{n}.png", 30, 20, shade=n)) for n in range(60)]
    copies = []
    for index in range(20, 40):
        copies.append(tmp_path / f"copy{index}.png")
        copies[-1].write_bytes((tmp_path / f"{index}.png").read_bytes())
    images = [[path] for path in paths] * 2 + [[str(path)] for path in copies]
    images += [[paths[n], paths[n + 1]] for n in range(0, 20, 2)]
    splits = split_by_image(rows_on(images), FRACTIONS, 0)
    assert sum(map(len, splits.values())) == len(images)
    assert min(map(len, splits.values())) > 20
    train, test = ({Path(path).read_bytes() for row in rows for path in row.images} for rows in splits.values())
    assert not train & test


def test_a_split_depends_only_on_seed_and_images():
    rows = rows_on([[f"{n // 2}.png"] for n in range(200)])
    splits = split_by_image(rows, FRACTIONS, 3)
    again = split_by_image(rows[::-1][:150], FRACTIONS, 3)
    train_ids = {row.id for row in splits["train"]}
    assert {row.id for row in again["train"]} == train_ids & {row.id for row in rows[50:]}
    assert {row.id for row in split_by_image(rows, FRACTIONS, 4)["train"]} != train_ids
    assert 0.6 < len(train_ids) / 200 < 0.8


def test_rows_without_images_are_split_by_question():
    rows = [Row(str(n), Task.MATH, Kind.OPEN, f"q{n // 3}", "1") for n in range(90)]
    splits = split_by_image(rows, FRACTIONS, 0)
    assert not shared_keys(splits["train"], splits["test"])
    assert group_keys(rows[0]) == group_keys(rows[1])


def test_a_split_without_rows_is_told_with_counts_and_a_seed_that_fills_it():
    rows = rows_on([["a.png"], ["b.png"], ["c.png"], ["c.png"]])
    fractions = {"train": 0.9, "test": 0.1, "none": 0.0}
    seeds = {seed: split_by_image(rows, fractions, seed) for seed in range(100)}
    empty = next(seed for seed, splits in seeds.items() if not splits["test"])
    counts, told = describe_split(seeds[empty], fractions, empty)
    assert counts == "images: train 3, test 0, none 0"
    words = (
        "test has no rows: none of the 3 images fell into its 0.1; give it a larger fraction, or take another --seed: "
    )
    assert told.startswith(words)
    better = int(told.removeprefix(words).split()[0])
    assert seeds[better]["test"] and seeds[better]["train"]
    assert describe_split(seeds[better], fractions, better) == ["images: train 2, test 1, none 0"]
    (_, hopeless) = describe_split({"train": rows[:1], "test": []}, {"train": 0.9, "test": 0.1}, 0)
    assert hopeless.endswith("none of the 1 images fell into its 0.1; give it a larger fraction")


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_fractions_sum_to_one(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_image([], fractions, 0)


def test_the_order_of_connected_rows_moves_none_of_them():
    # Every three rows are one group, and each of them begins with another image.
    rows = rows_on([[f"{n}.png", f"{n + 1}.png"] if n % 3 < 2 else [f"{n}.png"] for n in range(300)])
    parts, again = (split_by_image(order, FRACTIONS, 3) for order in (rows, rows[::-1]))
    assert [{row.id for row in parts[name]} for name in FRACTIONS] == [
        {row.id for row in again[name]} for name in FRACTIONS
    ]
