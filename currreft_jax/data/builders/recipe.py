"""The paper's sets, assembled from folders that the user has.

The paper publishes their sizes and sources, not their rows. In-domain rows come from one source a task; the published
validation and test splits of a source are its tests; where it has none, images are drawn for them. No image of a
test, in domain or out of it, stands in training or in the self-improvement set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders import write
from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.golds import sound, take
from currreft_jax.data.builders.items import BuildError, Material, Source, collect
from currreft_jax.data.builders.keyed import digest, ranked
from currreft_jax.data.builders.split import components, identities, shared
from currreft_jax.data.builders.stages import generate, with_scenes
from currreft_jax.data.builders.tables import SUFFIXES, records
from currreft_jax.data.fields import Fields
from currreft_jax.rewards import MathsPool
from currreft_jax.structs import Row

_MARGIN = 1.1  # of test rows: the golds of some cannot be read
_SPARE = 4  # rows looked at for each one wanted: some have no negatives, some share an image with a test
# What tells a format: a file, or the keys of the first record.
_FILES = {
    "refcoco": "instances.json",
    "refgta": "instances.json",
    "coco": "instances*.json",
    "voc": "*.xml",
    "clevr": "*questions*.json",
    "scienceqa": "problems.json",
    "visual7w": "*v7w*.json",
}
_SIGNATURES: dict[str, frozenset[str]] = {
    "refcoco-jxu124": frozenset({"raw_anns", "sentences"}),
    "refcoco-lmms": frozenset({"question_id", "bbox", "answer"}),
    "vlm-r1": frozenset({"normalized_solution", "solution"}),
    "open-r1-8k": frozenset({"problem", "solution"}),
    "clevr-70k": frozenset({"problem", "solution"}),
    "superclevr-r1v": frozenset({"image_path", "ground_truth"}),
    "mathv360k": frozenset({"conversations"}),
    "chat": frozenset({"conversations"}),
    "cauldron": frozenset({"images", "texts"}),
    "scienceqa": frozenset({"question", "choices", "answer"}),
    "vsr": frozenset({"caption", "label"}),
    "geomverse": frozenset({"cot", "image_path"}),
    "text": frozenset({"question", "solution"}),
}


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a recipe.

    Attributes:
        folder: its name under the root.
        formats: that it may have.
        task: of its rows.
        rows: how many are wanted: of each kind in training, of tests, or of conversations.
        split: only this published split or kind.
    """

    folder: str
    formats: tuple[str, ...]
    task: Task
    rows: int
    split: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which rows make the sets.

    Attributes:
        train: rows of each kind for every task; their sources give the tests in domain as well.
        tests: in domain, of every task.
        outside: tests out of domain.
        improve: conversations for the self-improvement phase.
    """

    train: tuple[Part, ...]
    tests: int
    outside: tuple[Part, ...]
    improve: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a recipe is followed.

    Attributes:
        seed: of all draws.
        skip: leaves bad records out.
        limit: how many of them, in each part.
        partial: makes do with the parts that are there, and with fewer rows.
    """

    seed: int = 0
    skip: bool = False
    limit: int = 100
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Sets:
    """What was drawn.

    Attributes:
        tests: file -> rows.
        train: rows of all kinds and tasks.
        improve: conversations.
        short: what there is too little of.
    """

    tests: dict[str, list[Row]]
    train: list[Row]
    improve: list[Row]
    short: list[str]

    def note(self, name: str, found: int, wanted: int) -> None:
        """Notes a shortage, if it is one."""
        if found < wanted:
            self.short.append(f"{name}: {found} of {wanted}")


PAPER = Recipe(
    train=(
        Part("refcoco", ("refcoco", "refcoco-jxu124", "vlm-r1"), Task.DETECTION, 3000),
        Part("coco", ("coco",), Task.CLASSIFY, 3000),
        Part("math", ("open-r1-8k", "mathv360k"), Task.MATH, 3000),
    ),
    tests=1000,
    outside=(
        Part("refgta", ("refgta", "vlm-r1"), Task.DETECTION, 1000),
        Part("voc", ("voc",), Task.CLASSIFY, 1000),
        Part("clevr-70k", ("clevr-70k", "clevr", "superclevr-r1v"), Task.MATH, 500),
    ),
    improve=(
        Part("geometry3k", ("chat",), Task.OTHER, 100),
        Part("geo170k", ("chat",), Task.OTHER, 100),
        Part("geomverse", ("geomverse", "chat", "cauldron"), Task.OTHER, 100),
        Part("s1k", ("text",), Task.OTHER, 400, "math"),
        Part("scienceqa-cauldron", ("chat", "cauldron", "scienceqa"), Task.OTHER, 100),
        Part("scienceqa-nona", ("chat", "scienceqa"), Task.OTHER, 120),
        Part("s1k", ("text",), Task.OTHER, 100, "science"),
        Part("llava-cot", ("chat",), Task.OTHER, 300),
        Part("visual7w", ("visual7w", "chat", "cauldron"), Task.OTHER, 100),
        Part("vsr", ("vsr", "chat", "cauldron"), Task.OTHER, 100),
    ),
)


def shrunk(recipe: Recipe, by: int) -> Recipe:
    """The recipe with all sizes divided, rounded up."""
    if by < 1:
        raise ValueError(f"--shrink {by}: it takes a whole number of at least 1")

    def less(parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(replace(part, rows=-(-part.rows // by)) for part in parts)

    return Recipe(less(recipe.train), -(-recipe.tests // by), less(recipe.outside), less(recipe.improve))


def assemble(root: Path, out: Path, recipe: Recipe, policy: Policy) -> str:
    """Writes `train/`, `test/` and `improve/` under `out`.

    Returns:
        What was written, and what was left out and why.

    Raises:
        BuildError: parts are missing or too small; the message says what each needs and where it is published.
    """
    parts = (*recipe.train, *recipe.outside, *recipe.improve)
    formats = {part.folder: recognise(root / part.folder, part.formats) for part in parts}
    missing = list(dict.fromkeys(part.folder for part in parts if not formats[part.folder]))
    if missing and not policy.partial:
        raise BuildError(_what_is_missing(root, recipe, missing))
    there = [part for part in parts if formats[part.folder]]
    with MathsPool(Maths()) as pool:
        material = {part: sound(_convert(part, formats[part.folder], root, out, policy), pool) for part in there}
        sets = _draw(recipe, material, policy.seed, pool)
    short = [*(f"{root / name}: missing" for name in missing), *sets.short]
    if short and not policy.partial:
        raise BuildError("\n  ".join(["the parts are too small (--partial makes do with less):", *short]))
    tests = [row for rows in sets.tests.values() for row in rows]
    for name, rows in (("training", sets.train), ("self-improvement", sets.improve)):
        if shared(rows, tests):
            raise BuildError(f"an image of a test stands in {name}: no rows were written; please report this")
    files = write.write_parts(out / "train", sets.train) | write.write_parts(out / "improve", sets.improve)
    for name, rows in sets.tests.items():
        files |= {str(out / "test" / name): write.write_checked(out / "test" / name, rows)} if rows else {}
    dropped = {
        f"{part.folder}: {reason}": where for part, its in material.items() for reason, where in its.dropped.items()
    }
    summary = {
        "seed": policy.seed,
        "formats": formats,
        "files": {str(Path(name).relative_to(out)): count for name, count in files.items()},
        "dropped": {reason: len(where) for reason, where in dropped.items()},
        "short": short,
    }
    write.write_text(out / "recipe.json", json.dumps(summary, indent=2) + "\n")
    bad = [error for its in material.values() for error in its.bad]
    return "\n".join([write.report(files, dropped, bad), *(f"short: {text}" for text in short)])


def _draw(recipe: Recipe, material: Mapping[Part, Material], seed: int, pool: MathsPool) -> Sets:
    """The tests first; then whatever shows none of their images."""
    sets = Sets({}, [], [], [])
    free, held = _in_domain(recipe, material, seed)
    known = {part: with_scenes(material[part]) for part in held}
    outside = {part: ranked(material[part].rows, seed, "outside") for part in recipe.outside if part in material}
    for where, count, its in (("in", recipe.tests, held), ("out", 0, outside)):
        for part, rows in its.items():
            found = take(rows, count or part.rows, material[part].dropped, pool)
            sets.note(f"{part.folder} tests", len(found), count or part.rows)
            sets.tests[f"{where}-{part.task.value}.jsonl"] = found
            for kind in (Kind.JUDGE, Kind.CHOICE) if where == "in" else ():
                name = f"in-{kind.value}-{part.task.value}.jsonl"
                sets.tests[name] = _of_kind(found, kind, known[part], seed, pool)
    seen = {name for rows in sets.tests.values() for row in rows for name in identities(row)}
    for part, rows in free.items():
        sets.train.extend(_stages(part, _unseen(rows, seen), known[part], seed, pool, sets))
    for part in recipe.improve:
        if part in material:
            rows = _unseen(ranked(material[part].rows, seed, "improve"), seen)[: part.rows]
            sets.note(part.folder, len(rows), part.rows)
            sets.improve.extend(rows)
    return sets


def recognise(folder: Path, formats: Sequence[str]) -> str:
    """Which of several formats a folder holds; empty if none."""
    if not folder.is_dir():
        return ""
    for name in formats:
        if name in _FILES and any(folder.rglob(_FILES[name])):
            return name
        if name in _SIGNATURES and _SIGNATURES[name] <= _first_keys(folder):
            return name
    return ""


def _first_keys(folder: Path) -> frozenset[str]:
    """The keys of the first record of the first table."""
    paths = sorted(path for suffix in SUFFIXES for path in folder.rglob("*" + suffix))
    for path in paths[:1]:
        first = next(iter(records(path)), None)
        if isinstance(first, Fields):
            return frozenset(first.keys)
    return frozenset()


def _convert(part: Part, name: str, root: Path, out: Path, policy: Policy) -> Material:
    its = FORMATS[name]
    source = Source(
        folder=root / part.folder,
        images=root / part.folder,
        written=out / "images" / part.folder,
        name=f"{part.folder}-{part.split}" if part.split else part.folder,
        origin=f"{its.published}; {its.licence}",
        split=part.split,
        tasks=(part.task,),
        kind=Kind.CHAT if part.task is Task.OTHER else Kind.OPEN,
    )
    return collect(its.convert(source), skip=policy.skip, limit=policy.limit)


def _in_domain(
    recipe: Recipe, material: Mapping[Part, Material], seed: int
) -> tuple[dict[Part, list[Row]], dict[Part, list[Row]]]:
    """Rows for training and rows for tests of each part, in the order they are taken."""
    there = [part for part in recipe.train if part in material]
    spare = {part: _SPARE * (3 * part.rows + recipe.tests) for part in there}
    rows = {part: ranked(material[part].rows, seed, "in domain") for part in there}
    held = {part: [row for row in rows[part] if _is_held_out(row)] for part in there}
    free = {part: [row for row in rows[part] if not _is_held_out(row)][: spare[part]] for part in there}
    lacking = Counter({part.folder: round(_MARGIN * recipe.tests) + 1 for part in there if not held[part]})
    chosen: set[str] = set()
    # All sources at once: two of them may hold the same photograph.
    for group in sorted(components(row for its in free.values() for row in its), key=lambda its: _place(its, seed)):
        if any(lacking[row.source] > 0 for row in group):
            lacking.subtract(row.source for row in group)
            chosen.update(row.id for row in group)
    for part in there:
        if not held[part]:
            held[part] = [row for row in free[part] if row.id in chosen]
            free[part] = [row for row in free[part] if row.id not in chosen]
    return free, held


def _place(group: Sequence[Row], seed: int) -> int:
    return digest(seed, "test", min(name for row in group for name in identities(row)))


def _is_held_out(row: Row) -> bool:
    return row.split.lower().startswith(("test", "val"))


def _stages(part: Part, rows: Sequence[Row], material: Material, seed: int, pool: MathsPool, sets: Sets) -> list[Row]:
    """Rows of all three kinds."""
    rows = take(rows, 2 * part.rows, material.dropped, pool)
    made = rows[: part.rows]
    sets.note(f"{part.folder} open rows", len(made), part.rows)
    for kind in (Kind.JUDGE, Kind.CHOICE):
        its = _of_kind(rows, kind, material, seed, pool, part.rows)
        sets.note(f"{part.folder} {kind.value} rows", len(its), part.rows)
        made = [*made, *its]
    return made


def _of_kind(
    rows: Sequence[Row], kind: Kind, material: Material, seed: int, pool: MathsPool, count: int | None = None
) -> list[Row]:
    """Yes/no rows, or rows with options, of open ones; those that make none are dropped and counted."""
    its = generate(rows, kind, material, seed, pool, count)
    for reason, ids in its.dropped.items():
        material.dropped.setdefault(f"{kind.value}: {reason}", []).extend(ids)
    return its.rows


def _unseen(rows: Sequence[Row], seen: set[str]) -> list[Row]:
    return [row for row in rows if not seen & set(identities(row))]


def _what_is_missing(root: Path, recipe: Recipe, missing: Sequence[str]) -> str:
    lines = [f"{root} lacks parts of the recipe (--partial makes do without them):"]
    for part in {part.folder: part for part in (*recipe.train, *recipe.outside, *recipe.improve)}.values():
        if part.folder in missing:
            lines.append(f"  {part.folder}/ takes one of:")
            lines += [f"    {name}: {FORMATS[name].needs} ({FORMATS[name].published})" for name in part.formats]
    return "\n".join(lines)
