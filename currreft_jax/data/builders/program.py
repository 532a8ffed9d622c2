"""`dataset build`: from published files to rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.data.builders import recipe, write
from currreft_jax.data.builders.formats import FORMATS, format_of
from currreft_jax.data.builders.golds import sound, take
from currreft_jax.data.builders.items import BuildError, Material, Source, collect
from currreft_jax.data.builders.keyed import ranked
from currreft_jax.data.builders.pixels import FORMS, SCALES
from currreft_jax.data.builders.split import split_by_image
from currreft_jax.data.builders.stages import generate, with_scenes
from currreft_jax.data.fields import LineError
from currreft_jax.data.rows import row_to_json
from currreft_jax.models.folder import write_json
from currreft_jax.rewards import MathsPool, MathsPoolError
from currreft_jax.structs import Frame, Row
from currreft_jax.world import base, tokenizer
from currreft_jax.world import write as world
from currreft_jax.world.settings import Sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `dataset build`."""
    default = Source(Path(), Path(), Path())
    parser.add_argument("format", nargs="?", metavar="FORMAT", help="one of the formats that --list names, or world")
    parser.add_argument("--list", action="store_true", help="says what each format needs, and ends")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="the published files, as unpacked")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the rows go")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where the images are (default: --source)")
    parser.add_argument("--name", help="the rows' source (default: FORMAT)")
    parser.add_argument("--split", default="", help="only this published split")
    parser.add_argument("--tasks", default="detection,classify", help="of sources with both (default %(default)s)")
    parser.add_argument(
        "--kind", choices=[kind.value for kind in Kind], default=Kind.OPEN.value, help="of sources with several"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="at most N rows of each task, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default %(default)s)")
    parser.add_argument(
        "--fractions", default="", metavar="PART=SHARE,…", help="splits the rows by image, as train=0.9,test=0.1"
    )
    parser.add_argument(
        "--generate", default="", metavar="judge,choice", help="makes such rows of the open ones, for earlier stages"
    )
    parser.add_argument(
        "--on-bad-row", choices=["error", "skip"], default="error", help="what a broken record does (default error)"
    )
    parser.add_argument(
        "--bad-limit", type=int, default=100, metavar="N", help="most records to skip (default %(default)s)"
    )
    parser.add_argument("--difficult", action="store_true", help="voc: asks about difficult objects too")
    parser.add_argument("--unlisted", action="store_true", help="coco, voc: questions do not list the categories")
    parser.add_argument(
        "--most-boxes",
        type=int,
        default=default.most_boxes,
        metavar="N",
        help="coco, voc: most boxes that one question asks for (default %(default)s)",
    )
    parser.add_argument(
        "--task", choices=[task.value for task in Task], default=default.task.value, help="table: of its rows"
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="KEY=NAME", help="table: the column of a key; repeatable"
    )
    parser.add_argument("--box-form", choices=list(FORMS), default=default.box_form, help="table: of its boxes")
    parser.add_argument(
        "--box-scale", choices=list(SCALES), default=default.box_scale, help="table: what their coordinates count"
    )
    parser.add_argument(
        "--frame", metavar="WIDTHxHEIGHT", help="what boxes are measured in, where the images were resized since"
    )
    parser.add_argument("--recipe", choices=["paper"], help="assembles the paper's sets from the folders of --root")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="recipe: holds a folder for each part")
    parser.add_argument("--partial", action="store_true", help="recipe: makes do with the parts that are there")
    parser.add_argument(
        "--shrink", type=int, default=1, metavar="N", help="recipe, world: all sizes divided by N, to try it"
    )


def run(options: argparse.Namespace) -> None:
    """Runs `dataset build` and prints what was written; ends the program with a message where it cannot."""
    try:
        print(build(options))
    except (BuildError, LineError, ValueError, OSError, MathsPoolError) as error:
        sys.exit(f"dataset build: {error}")


def build(options: argparse.Namespace) -> str:
    """Builds what the options ask for.

    Returns:
        What was written, and what was left out and why.

    Raises:
        BuildError: something is missing, or too many records are bad.
        ValueError: options that make no sense.
    """
    if options.list:
        return listing()
    if options.out is None:
        raise BuildError("--out takes the folder that the rows are written to")
    if options.format == "world":
        return _world(options)
    if options.recipe:
        if options.root is None:
            raise BuildError("--root takes the folder that holds the parts of the recipe")
        policy = recipe.Policy(options.seed, options.on_bad_row == "skip", options.bad_limit, options.partial)
        return recipe.assemble(options.root, options.out, recipe.shrunk(recipe.PAPER, options.shrink), policy)
    if options.format is None or options.source is None:
        raise BuildError("give a FORMAT and its --source, or --recipe and its --root; --list names the formats")
    kinds = _kinds(options.generate)
    fractions = _fractions(options.fractions)
    source = source_of(options)
    material = collect(
        format_of(options.format).convert(source), skip=options.on_bad_row == "skip", limit=options.bad_limit
    )
    with MathsPool(Maths()) as pool:
        material = with_scenes(sound(material, pool))
        rows = _drawn(material, options.rows, options.seed, pool)
        parts = split_by_image(rows, fractions, options.seed) if fractions else {"": rows}
        made = {
            name: [
                *([] if options.format == "stages" else part),
                *_generated(part, kinds, material, options.seed, pool),
            ]
            for name, part in parts.items()
        }
    if not any(made.values()):
        raise BuildError(f"no rows\n{write.report({}, material.dropped, material.bad)}")
    files: dict[str, int] = {}
    for name, part in made.items():
        files |= write.write_parts(options.out / name, part)
        if options.format != "stages":
            write.write_material(options.out / name, part, material)
    _write_summary(options, files, material)
    return write.report(files, material.dropped, material.bad)


def _world(options: argparse.Namespace) -> str:
    """Writes the embedded world, and the folder that its base starts from: a shape and a tokenizer without weights."""
    sizes = Sizes(**{name: max(1, size // options.shrink) for name, size in asdict(Sizes()).items()})
    files = world.write(options.out, row_to_json, seed=options.seed, sizes=sizes)
    model = options.out / "model"
    model.mkdir()
    tokenizer.write(model)
    write_json(model / "config.json", base.config())
    return "\n".join(f"{count:>8}  {options.out / name}" for name, count in files.items())


def listing() -> str:
    """What every format makes and needs, and where it is published."""
    lines = []
    for name, its in FORMATS.items():
        lines += [f"{name}: {its.makes}", f"    needs      {its.needs}", f"    published  {its.published}"]
        lines += [f"    licence    {its.licence}"] if its.licence else []
    return "\n".join(lines)


def source_of(options: argparse.Namespace) -> Source:
    """The converter's settings.

    Raises:
        BuildError: a setting cannot be read.
    """
    if not options.source.exists():
        raise BuildError(f"{options.source} does not exist; --source takes the folder of the published files")
    name, format = options.name or options.format, format_of(options.format)
    folder = options.source if options.source.is_dir() else options.source.parent
    return Source(
        folder=options.source,
        images=options.images or folder,
        written=options.out / "images",
        name=name,
        origin="; ".join(part for part in (format.published, format.licence) if part),
        split=options.split,
        tasks=tuple(Task(task) for task in _names(options.tasks, ("detection", "classify"), "--tasks")),
        kind=Kind(options.kind),
        task=Task(options.task),
        difficult=options.difficult,
        listed=not options.unlisted,
        most_boxes=options.most_boxes,
        box_form=options.box_form,
        box_scale=options.box_scale,
        frame=_frame(options.frame),
        columns=dict(_pair(text, "--column") for text in options.column),
    )


def _drawn(material: Material, count: int | None, seed: int, pool: MathsPool) -> list[Row]:
    """All rows in their order, or `count` of each task."""
    if count is None:
        return take(material.rows, None, material.dropped, pool)
    tasks = ([row for row in material.rows if row.task is task] for task in Task)
    return [row for rows in tasks for row in take(ranked(rows, seed, "sample"), count, material.dropped, pool)]


def _generated(rows: Sequence[Row], kinds: Sequence[Kind], material: Material, seed: int, pool: MathsPool) -> list[Row]:
    """Rows of the kinds, of the open ones; open rows that have none are noted."""
    opens = [row for row in rows if row.kind is Kind.OPEN]
    made = []
    for kind in kinds:
        its = generate(opens, kind, material, seed, pool)
        made += its.rows
        for reason, ids in its.dropped.items():
            material.dropped.setdefault(f"{kind.value}: {reason}", []).extend(ids)
    return made


def _write_summary(options: argparse.Namespace, files: Mapping[str, int], material: Material) -> None:
    summary = {
        "format": options.format,
        "seed": options.seed,
        "files": {str(Path(name).relative_to(options.out)): count for name, count in files.items()},
        "dropped": {reason: len(where) for reason, where in sorted(material.dropped.items())},
        "bad": [str(error) for error in material.bad],
    }
    write.write_text(options.out / "build.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _kinds(text: str) -> list[Kind]:
    return [Kind(name) for name in _names(text, ("judge", "choice"), "--generate")]


def _names(text: str, known: Sequence[str], flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise BuildError(f"{flag} names {name!r}; it takes {', '.join(known)}")
    return names


def _fractions(text: str) -> dict[str, float]:
    shares = {}
    for part in filter(None, text.split(",")):
        name, share = _pair(part, "--fractions")
        if not name.isidentifier():
            raise BuildError(f"--fractions names a part {name!r}; a part is the name of a folder, made of letters")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise BuildError(f"--fractions {part}: the share is a number, as in train=0.9,test=0.1") from error
    return shares


def _frame(text: str | None) -> Frame | None:
    if not text:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise BuildError(f"--frame {text}: it takes a size in pixels, as 1920x1080")
    return Frame(int(width), int(height))


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise BuildError(f"{flag} {text}: write KEY=VALUE")
    return key.strip(), value.strip()
