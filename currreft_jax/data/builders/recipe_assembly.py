"""Assembly of a recipe's sets from the folders of its sources.

Rows in domain come from one source per task. The published validation and test splits of a source are its tests; if it
has none, images are drawn for them. No test image, in domain or out of domain, is in training or in the
self-improvement set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders.converter import BuildError, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.format_detection import detect_format
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.gold_filter import drop_unreadable_golds, take_readable
from currreft_jax.data.builders.hashed_rng import hash64, hash_shuffle_rows
from currreft_jax.data.builders.image_split import connected_groups, group_keys, shared_keys
from currreft_jax.data.builders.output_files import format_report, write_checked, write_row_files, write_text
from currreft_jax.data.builders.recipe import Recipe, RecipeSource
from currreft_jax.data.builders.stage_rows import annotate_from_golds, generate_and_note_drops
from currreft_jax.rewards import MathsPool
from currreft_jax.structs import Row

_SPARE_TESTS = 1.1  # test rows held out for each one wanted: the golds of some cannot be read
_SPARE_ROWS = 4  # rows considered for each one wanted: some have no negatives, some share an image with a test


@dataclass(frozen=True, slots=True)
class AssemblyOptions:
    """Options of `assemble`.

    Attributes:
        seed: seed of all draws.
        skip: skips bad records.
        limit: maximum number of skipped records for each source.
        partial: accepts missing sources and too few rows.
    """

    seed: int = 0
    skip: bool = False
    limit: int = 100
    partial: bool = False


@dataclass(frozen=True, slots=True)
class RecipeSets:
    """The rows of a recipe's sets.

    Attributes:
        tests: file name -> rows.
        train: rows of all kinds and tasks.
        improve: conversations.
        shortages: "SET: FOUND of WANTED" for each set that is too small.
    """

    tests: dict[str, list[Row]] = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    improve: list[Row] = field(default_factory=list)
    shortages: list[str] = field(default_factory=list)

    def note_shortage(self, name: str, found: int, wanted: int) -> None:
        """Adds a shortage if fewer rows were found than wanted."""
        if found < wanted:
            self.shortages.append(f"{name}: {found} of {wanted}")


def assemble(root: Path, out: Path, recipe: Recipe, options: AssemblyOptions) -> str:
    """Writes the sets of a recipe to `train/`, `test/` and `improve/` under `out`.

    Returns:
        A report on written files, dropped and bad records, and shortages.

    Raises:
        BuildError: sources are missing or too small; the message lists what each needs and where it is published.
    """
    formats = {source.folder: detect_format(root / source.folder, source.formats) for source in recipe.sources}
    missing = [folder for folder, name in formats.items() if not name]
    if missing and not options.partial:
        raise BuildError(_describe_missing(root, recipe, missing))
    with MathsPool(Maths()) as pool:
        data = {
            source: drop_unreadable_golds(_convert(source, formats[source.folder], root, out, options), pool)
            for source in recipe.sources
            if formats[source.folder]
        }
        sets = _select_sets(recipe, data, options.seed, pool)
    shortages = [*(f"{root / folder}: missing" for folder in missing), *sets.shortages]
    if shortages and not options.partial:
        raise BuildError("\n  ".join(["the sources are too small (--partial accepts fewer rows):", *shortages]))
    files = _write_sets(out, sets)
    dropped = {
        f"{source.folder}: {reason}": locations
        for source, converted in data.items()
        for reason, locations in converted.dropped.items()
    }
    summary = {
        "seed": options.seed,
        "formats": formats,
        "files": {str(Path(name).relative_to(out)): count for name, count in files.items()},
        "dropped": {reason: len(locations) for reason, locations in dropped.items()},
        "short": shortages,
    }
    write_text(out / "recipe.json", json.dumps(summary, indent=2) + "\n")
    bad_records = [error for converted in data.values() for error in converted.bad_records]
    report = format_report(files, ConvertedData(dropped=dropped, bad_records=bad_records))
    return "\n".join([report, *(f"short: {text}" for text in shortages)])


def _convert(source: RecipeSource, format_name: str, root: Path, out: Path, options: AssemblyOptions) -> ConvertedData:
    dataset_format = FORMATS[format_name]
    dataset = DatasetSource(
        folder=root / source.folder,
        image_folder=root / source.folder,
        extracted_images=out / "images" / source.folder,
        name=f"{source.folder}-{source.split}" if source.split else source.folder,
        origin=dataset_format.origin,
        split=source.split,
        tasks=(source.task,),
        kind=Kind.CHAT if source.task is Task.OTHER else Kind.OPEN,
    )
    return collect_items(dataset_format.convert(dataset), skip=options.skip, limit=options.limit)


def _select_sets(recipe: Recipe, data: Mapping[RecipeSource, ConvertedData], seed: int, pool: MathsPool) -> RecipeSets:
    """Selects the tests first, then training rows and conversations that show none of their images."""
    sets = RecipeSets()
    train_rows, test_rows = _split_in_domain(recipe, data, seed)
    annotated = {source: annotate_from_golds(data[source]) for source in test_rows}
    for source, rows in test_rows.items():
        tests = _select_tests("in", source, rows, recipe.num_tests, data[source], pool, sets)
        for kind in (Kind.JUDGE, Kind.CHOICE):
            name = f"in-{kind.value}-{source.task.value}.jsonl"
            sets.tests[name] = generate_and_note_drops(tests, kind, annotated[source], seed, pool)
    for source in recipe.out_of_domain:
        if source in data:
            rows = hash_shuffle_rows(data[source].rows, seed, "outside")
            _select_tests("out", source, rows, source.num_rows, data[source], pool, sets)
    test_keys = {key for rows in sets.tests.values() for row in rows for key in group_keys(row)}
    for source, rows in train_rows.items():
        unseen = _without_keys(rows, test_keys)
        sets.train.extend(_select_training_rows(source, unseen, annotated[source], seed, pool, sets))
    for source in recipe.improve:
        if source in data:
            unseen = _without_keys(hash_shuffle_rows(data[source].rows, seed, "improve"), test_keys)
            rows = unseen[: source.num_rows]
            sets.note_shortage(source.folder, len(rows), source.num_rows)
            sets.improve.extend(rows)
    return sets


def _split_in_domain(
    recipe: Recipe, data: Mapping[RecipeSource, ConvertedData], seed: int
) -> tuple[dict[RecipeSource, list[Row]], dict[RecipeSource, list[Row]]]:
    """Returns the training rows and the test rows of each source, in the order in which they are taken."""
    sources = [source for source in recipe.train if source in data]
    train_rows: dict[RecipeSource, list[Row]] = {}
    test_rows: dict[RecipeSource, list[Row]] = {}
    for source in sources:
        rows = hash_shuffle_rows(data[source].rows, seed, "in domain")
        test_rows[source] = [row for row in rows if _has_test_split(row)]
        limit = _SPARE_ROWS * (3 * source.num_rows + recipe.num_tests)
        train_rows[source] = [row for row in rows if not _has_test_split(row)][:limit]
    without_tests = [source for source in sources if not test_rows[source]]
    lacking = Counter({source.folder: round(_SPARE_TESTS * recipe.num_tests) + 1 for source in without_tests})
    drawn: set[str] = set()
    # Groups over all sources: two sources may hold the same photograph.
    groups = connected_groups((row for rows in train_rows.values() for row in rows), group_keys)
    for group in sorted(groups, key=lambda group: _hash_of_group(group, seed)):
        if any(lacking[row.source] > 0 for row in group):
            lacking.subtract(row.source for row in group)
            drawn.update(row.id for row in group)
    for source in without_tests:
        test_rows[source] = [row for row in train_rows[source] if row.id in drawn]
        train_rows[source] = [row for row in train_rows[source] if row.id not in drawn]
    return train_rows, test_rows


def _has_test_split(row: Row) -> bool:
    return row.split.lower().startswith(("test", "val"))


def _hash_of_group(group: Sequence[Row], seed: int) -> int:
    return hash64(seed, "test", min(key for row in group for key in group_keys(row)))


def _select_tests(
    domain: str,
    source: RecipeSource,
    rows: Sequence[Row],
    count: int,
    data: ConvertedData,
    pool: MathsPool,
    sets: RecipeSets,
) -> list[Row]:
    """Adds `count` open test rows to the sets, and returns them."""
    tests = take_readable(rows, count, data.dropped, pool)
    sets.note_shortage(f"{source.folder} tests", len(tests), count)
    sets.tests[f"{domain}-{source.task.value}.jsonl"] = tests
    return tests


def _select_training_rows(
    source: RecipeSource, rows: Sequence[Row], data: ConvertedData, seed: int, pool: MathsPool, sets: RecipeSets
) -> list[Row]:
    """Returns open, yes/no and choice rows."""
    open_rows = take_readable(rows, 2 * source.num_rows, data.dropped, pool)
    selected = open_rows[: source.num_rows]
    sets.note_shortage(f"{source.folder} open rows", len(selected), source.num_rows)
    for kind in (Kind.JUDGE, Kind.CHOICE):
        generated = generate_and_note_drops(open_rows, kind, data, seed, pool, source.num_rows)
        sets.note_shortage(f"{source.folder} {kind.value} rows", len(generated), source.num_rows)
        selected = [*selected, *generated]
    return selected


def _without_keys(rows: Sequence[Row], keys: set[str]) -> list[Row]:
    return [row for row in rows if not keys & set(group_keys(row))]


def _write_sets(out: Path, sets: RecipeSets) -> dict[str, int]:
    """Writes the sets; returns file -> number of rows.

    Raises:
        BuildError: a test image is in training or in the self-improvement set; nothing is written.
    """
    tests = [row for rows in sets.tests.values() for row in rows]
    for name, rows in (("training", sets.train), ("self-improvement", sets.improve)):
        if shared_keys(rows, tests):
            raise BuildError(f"a test image is in the {name} set: no rows were written; please report this")
    files = write_row_files(out / "train", sets.train) | write_row_files(out / "improve", sets.improve)
    for name, rows in sets.tests.items():
        if rows:
            files[str(out / "test" / name)] = write_checked(out / "test" / name, rows)
    return files


def _describe_missing(root: Path, recipe: Recipe, missing: Sequence[str]) -> str:
    lines = [f"{root} lacks sources of the recipe (--partial continues without them):"]
    for source in {source.folder: source for source in recipe.sources}.values():
        if source.folder in missing:
            lines.append(f"  {source.folder}/ takes one of:")
            lines += [
                f"    {name}: {FORMATS[name].required_files} ({FORMATS[name].homepage})" for name in source.formats
            ]
    return "\n".join(lines)
