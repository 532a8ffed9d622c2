"""The command `dataset build`: from published files to rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from currreft_jax.config import Kind, Maths, Task
from currreft_jax.config.missing import describe_error, describe_missing, name_nearest
from currreft_jax.config.output import output_path
from currreft_jax.data.builders.absent_rows import with_absent_rows
from currreft_jax.data.builders.box_formats import BOX_FORMATS, BOX_SCALES
from currreft_jax.data.builders.converter import BuildError, ConvertedData, DatasetSource, collect_items
from currreft_jax.data.builders.formats import FORMATS, find_format
from currreft_jax.data.builders.gold_filter import drop_unreadable_golds, take_readable
from currreft_jax.data.builders.hashed_rng import hash_shuffle_rows
from currreft_jax.data.builders.image_split import describe_split, split_by_image
from currreft_jax.data.builders.material_files import write_material
from currreft_jax.data.builders.output_files import format_report, write_row_files, write_text
from currreft_jax.data.builders.recipe import PAPER, shrink_recipe
from currreft_jax.data.builders.recipe_assembly import AssemblyOptions, assemble
from currreft_jax.data.builders.stage_rows import annotate_from_golds, generate_and_note_drops
from currreft_jax.data.fields import LineError
from currreft_jax.data.rows import row_to_json
from currreft_jax.models.folder import write_json
from currreft_jax.rewards import MathsPool, MathsPoolError
from currreft_jax.structs import Frame, Row
from currreft_jax.world import base, tokenizer
from currreft_jax.world.settings import DIFFICULTIES, WorldSizes
from currreft_jax.world.write import write_world

_FORMATS_WITH_SIZES = ("coco", "voc", "refcoco", "refgta", "refcoco-jxu124")  # of each image, in its annotations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `dataset build`."""
    default = DatasetSource(Path(), Path(), Path())
    parser.add_argument("format", nargs="?", metavar="FORMAT", help="a format that --list names, or world")
    parser.add_argument("--list", action="store_true", help="lists the formats and the files that each needs")
    parser.add_argument("--source", type=Path, metavar="FOLDER", help="folder of the published files, unpacked")
    parser.add_argument("--out", type=output_path, metavar="FOLDER", help="folder for the rows")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of the images (default: --source)")
    parser.add_argument("--name", help="source name of the rows (default: FORMAT)")
    parser.add_argument(
        "--origin",
        metavar="TEXT",
        help="who published the images and annotations, and their licence (default: as --list says of FORMAT)",
    )
    parser.add_argument("--split", default="", help="converts only this published split")
    parser.add_argument(
        "--tasks", default="detection,classify", help="tasks, for formats with both (default %(default)s)"
    )
    parser.add_argument(
        "--kind", choices=[kind.value for kind in Kind], default=Kind.OPEN.value, help="for formats with several kinds"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="at most N rows of each task, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default %(default)s)")
    parser.add_argument(
        "--fractions", default="", metavar="SPLIT=FRACTION,…", help="splits rows by image, as train=0.9,test=0.1"
    )
    parser.add_argument(
        "--generate", default="", metavar="judge,choice", help="generates rows of the earlier stages from open rows"
    )
    parser.add_argument(
        "--absent",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="coco, voc: share of the questions for boxes that ask for a category which the image does not show",
    )
    parser.add_argument(
        "--on-bad-row", choices=["error", "skip"], default="error", help="on a broken record (default %(default)s)"
    )
    parser.add_argument(
        "--bad-limit", type=int, default=100, metavar="N", help="most records to skip (default %(default)s)"
    )
    parser.add_argument("--difficult", action="store_true", help="voc: asks about difficult objects too")
    parser.add_argument("--unlisted", action="store_true", help="coco, voc: questions do not list the categories")
    parser.add_argument(
        "--most-boxes",
        type=int,
        default=default.max_boxes,
        metavar="N",
        help="coco, voc: most boxes that a question asks for (default %(default)s)",
    )
    _add_arguments_of_formats(parser, default)


def _add_arguments_of_formats(parser: argparse.ArgumentParser, default: DatasetSource) -> None:
    """Adds the arguments of tables, resized images and recipes."""
    parser.add_argument(
        "--task",
        choices=[task.value for task in Task],
        default=default.task.value,
        help="table: task of the rows (default %(default)s); other for one that a reward of your own scores",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="table: column of a row's key, of the solution also four of a box, solution=x1,y1,x2,y2, and of"
        " the options one each, options=A,B,C; repeatable",
    )
    parser.add_argument(
        "--multiple",
        action="store_true",
        help="table: several options of every choice row may be right; a column called multiple says it row by row",
    )
    parser.add_argument(
        "--question",
        default="",
        metavar="TEXT",
        help="table: the question of all rows; {label} or another column in braces is replaced by its cell, as in"
        " 'Where is the {label}?'",
    )
    parser.add_argument(
        "--box-form", choices=list(BOX_FORMATS), default="", help="table: box format (default: if only one fits, that)"
    )
    parser.add_argument(
        "--box-scale",
        choices=list(BOX_SCALES),
        default=default.box_scale,
        help="table: unit of box coordinates (default %(default)s)",
    )
    parser.add_argument(
        "--frame",
        metavar="WIDTHxHEIGHT|annotated",
        help="size that boxes are measured in, if images were resized since; annotated: the one that the annotations of"
        " each image state (coco, voc, refcoco, refgta, refcoco-jxu124)",
    )
    parser.add_argument("--recipe", choices=["paper"], help="assembles the paper's sets from the folders of --root")
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="recipe: holds a folder for each source")
    parser.add_argument("--partial", action="store_true", help="recipe: accepts missing and too small sources")
    parser.add_argument(
        "--difficulty", choices=list(DIFFICULTIES), default="middle", help="world: how hard (default %(default)s)"
    )
    parser.add_argument(
        "--shrink", type=int, default=1, metavar="N", help="recipe, world: divides all sizes by N, for a trial"
    )


def run(options: argparse.Namespace) -> None:
    """Runs `dataset build` and prints its report; exits with a message on an error."""
    try:
        print(build(options))
    except (BuildError, LineError, ValueError, OSError, MathsPoolError) as error:
        sys.exit(f"dataset build: {describe_error(error)}")


def build(options: argparse.Namespace) -> str:
    """Runs the options' build.

    Returns:
        A report on written files, and dropped and bad records.

    Raises:
        BuildError: something is missing, or too many records are bad.
        ValueError: an option is invalid.
    """
    if options.list:
        return list_formats()
    if options.out is None:
        raise BuildError("--out takes the folder that the rows are written to")
    if not 0 <= options.absent < 1:
        raise BuildError(f"--absent {options.absent:g}: it takes a share from 0 to below 1")
    if options.absent and (options.recipe or options.format in ("world", "stages")):
        raise BuildError("--absent changes open rows as they are converted: it goes with coco and voc")
    if options.origin is not None and (options.recipe or options.format in ("world", "stages")):
        raise BuildError("--origin: the rows of a recipe, of world and of stages have theirs; leave it out")
    if options.format == "world":
        return _build_world(options)
    if options.recipe:
        return _build_recipe(options)
    return _build_format(options)


def list_formats() -> str:
    """Lists for every format its rows, the files that it needs, its address and its licence."""
    lines = []
    for name, dataset_format in FORMATS.items():
        lines += [
            f"{name}: {dataset_format.output}",
            f"    needs      {dataset_format.required_files}",
            f"    published  {dataset_format.homepage}",
        ]
        lines += [f"    licence    {dataset_format.licence}"] if dataset_format.licence else []
    return "\n".join(lines)


def source_from_options(options: argparse.Namespace) -> DatasetSource:
    """Returns the source that the options describe.

    Raises:
        BuildError: an option is invalid, or the source does not exist.
    """
    if not options.source.exists():
        near = name_nearest(options.source)
        raise BuildError(f"{options.source} does not exist{near}; --source takes the folder of the published files")
    if options.images and not options.images.is_dir():
        raise BuildError(f"--images: {describe_missing(options.images, 'folder')}")
    annotated_frame = options.frame == "annotated"
    if annotated_frame and options.format not in _FORMATS_WITH_SIZES:
        raise BuildError(f"--frame=annotated: {options.format} states no sizes; give WIDTHxHEIGHT, as 1920x1080")
    of_tables = {"--question": options.question, "--column": options.column, "--box-form": options.box_form}
    of_tables |= {"--multiple": options.multiple}
    if options.format != "table" and any(of_tables.values()):
        given = ", ".join(flag for flag, value in of_tables.items() if value)
        raise BuildError(f"{given}: of `build table` alone, not of {options.format}, whose files say it themselves")
    folder = options.source if options.source.is_dir() else options.source.parent
    return DatasetSource(
        folder=options.source,
        image_folder=options.images or folder,
        extracted_images=options.out / "images",
        name=options.name or options.format,
        origin=find_format(options.format).origin if options.origin is None else options.origin,
        split=options.split,
        tasks=tuple(Task(task) for task in _parse_names(options.tasks, ("detection", "classify"), "--tasks")),
        kind=Kind(options.kind),
        task=Task(options.task),
        include_difficult=options.difficult,
        list_categories=not options.unlisted,
        max_boxes=options.most_boxes,
        box_format=options.box_form,
        box_scale=options.box_scale,
        frame=None if annotated_frame else _parse_frame(options.frame),
        annotated_frame=annotated_frame,
        columns=dict(_parse_pair(text, "--column") for text in options.column),
        question=options.question,
        multiple=options.multiple,
    )


def _build_world(options: argparse.Namespace) -> str:
    """Writes the embedded world, and its base model's config and tokenizer, without weights."""
    sizes = WorldSizes(**{name: max(1, size // options.shrink) for name, size in asdict(WorldSizes()).items()})
    settings = DIFFICULTIES[options.difficulty]
    files = write_world(options.out, row_to_json, seed=options.seed, sizes=sizes, settings=settings)
    model = options.out / "model"
    model.mkdir()
    tokenizer.write_tokenizer(model)
    write_json(model / "config.json", base.config())
    return "\n".join(f"{count:>8}  {options.out / name}" for name, count in files.items())


def _build_recipe(options: argparse.Namespace) -> str:
    if options.root is None:
        raise BuildError("--root takes the folder that holds the sources of the recipe")
    assembly = AssemblyOptions(options.seed, options.on_bad_row == "skip", options.bad_limit, options.partial)
    return assemble(options.root, options.out, shrink_recipe(PAPER, options.shrink), assembly)


def _build_format(options: argparse.Namespace) -> str:
    """Converts one source, generates the wanted kinds for each split, and writes rows, material and summary."""
    if options.format is None or options.source is None:
        raise BuildError("give a FORMAT and its --source, or --recipe and its --root; --list names the formats")
    kinds = [Kind(name) for name in _parse_names(options.generate, ("judge", "choice"), "--generate")]
    fractions = _parse_fractions(options.fractions)
    source = source_from_options(options)
    data = collect_items(
        find_format(options.format).convert(source), skip=options.on_bad_row == "skip", limit=options.bad_limit
    )
    keep_converted = options.format != "stages"  # whose rows and material are on disk already
    with MathsPool(Maths()) as pool:
        data = annotate_from_golds(drop_unreadable_golds(data, pool))
        rows = _sample_rows(data, options.rows, options.seed, pool)
        if options.absent:
            rows = with_absent_rows(rows, data.images, options.absent, options.seed)
        converted = split_by_image(rows, fractions, options.seed) if fractions else {"": rows}
        data.remarks.extend(describe_split(converted, fractions, options.seed))
        splits = {
            name: [*(split if keep_converted else []), *_generate_kinds(split, kinds, data, options.seed, pool)]
            for name, split in converted.items()
        }
    if not any(splits.values()):
        of_split = f" of --split={options.split}" if options.split else ""
        raise BuildError(f"no rows{of_split}\n{format_report({}, data)}")
    files: dict[str, int] = {}
    for name, split in splits.items():
        files |= write_row_files(options.out / name, split)
        if keep_converted:
            write_material(options.out / name, split, data)
    data.remarks.extend(_earlier_files(options.out, files))
    return format_report(files, data, _write_summary(options, files, data))


def _earlier_files(out: Path, files: Mapping[str, int]) -> list[str]:
    """Returns a remark on row files of the folder that this build has not written."""
    found = sorted(str(path) for pattern in ("*.jsonl", "*/*.jsonl") for path in out.glob(pattern))
    earlier = [path for path in found if path not in files and Path(path).parent.name != "material"]
    if not earlier:
        return []
    shown = ", ".join(earlier[:3]) + (f" and {len(earlier) - 3} more" if len(earlier) > 3 else "")
    return [f"{shown}: not of this build, and read by patterns such as {out}/*.jsonl; remove what is out of date"]


def _sample_rows(data: ConvertedData, count: int | None, seed: int, pool: MathsPool) -> list[Row]:
    """Returns all rows in file order, or `count` of each task drawn by the seed."""
    if count is None:
        return take_readable(data.rows, None, data.dropped, pool)
    tasks = ([row for row in data.rows if row.task is task] for task in Task)
    return [
        row
        for rows in tasks
        for row in take_readable(hash_shuffle_rows(rows, seed, "sample"), count, data.dropped, pool)
    ]


def _generate_kinds(
    rows: Sequence[Row], kinds: Sequence[Kind], data: ConvertedData, seed: int, pool: MathsPool
) -> list[Row]:
    open_rows = [row for row in rows if row.kind is Kind.OPEN]
    return [row for kind in kinds for row in generate_and_note_drops(open_rows, kind, data, seed, pool)]


def _write_summary(options: argparse.Namespace, files: Mapping[str, int], data: ConvertedData) -> Path:
    """Writes all counts and bad records; returns the file."""
    path = options.out / "build.json"
    summary = {
        "format": options.format,
        "seed": options.seed,
        "files": {str(Path(name).relative_to(options.out)): count for name, count in files.items()},
        "remarks": data.remarks,
        "dropped": {reason: len(locations) for reason, locations in sorted(data.dropped.items())},
        "bad": [str(error) for error in data.bad_records],
    }
    write_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return path


def _parse_names(text: str, known: Sequence[str], flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise BuildError(f"{flag} names {name!r}; it takes {', '.join(known)}")
    return names


def _parse_fractions(text: str) -> dict[str, float]:
    fractions = {}
    for pair in filter(None, text.split(",")):
        name, fraction = _parse_pair(pair, "--fractions")
        if not name.isidentifier():
            raise BuildError(f"--fractions names a split {name!r}; a split is the name of a folder, made of letters")
        try:
            fractions[name] = float(fraction)
        except ValueError as error:
            raise BuildError(f"--fractions {pair}: the fraction is a number, as in train=0.9,test=0.1") from error
    return fractions


def _parse_frame(text: str | None) -> Frame | None:
    if not text:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise BuildError(f"--frame {text}: it takes a size in pixels, as 1920x1080, or annotated")
    return Frame(int(width), int(height))


def _parse_pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise BuildError(f"{flag} {text}: write KEY=VALUE")
    return key.strip(), value.strip()
