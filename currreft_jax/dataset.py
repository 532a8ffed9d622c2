"""Rows of data: build them, check files of them, and show one as the model will see it.

  python -m currreft_jax.dataset check train.jsonl test.jsonl --model Qwen/Qwen2.5-VL-3B-Instruct
  python -m currreft_jax.dataset check --train a.jsonl b.jsonl --test c.jsonl --max-pixels 401408 --out report.json
  python -m currreft_jax.dataset check math_math_train.json --kind open --image-root images
  python -m currreft_jax.dataset show train.jsonl 12 --out row.png
  python -m currreft_jax.dataset show world shapes:3
  python -m currreft_jax.dataset build voc --source VOCdevkit --out rows --generate judge,choice
  python -m currreft_jax.dataset build world --out runs/world

docs/data.md describes the rows.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from currreft_jax.config import Kind, Task
from currreft_jax.data import builders
from currreft_jax.data import processor as processors
from currreft_jax.data.budget import PAPER_PIXELS, PAPER_PROMPT_TOKENS, Budget, Frames, prompt_of, prompt_text
from currreft_jax.data.doctor import NOTES, Finding, Report, Source, examine, gold_corners
from currreft_jax.data.draw import GREEN, ORANGE, draw_boxes
from currreft_jax.data.images import ImageError, open_image
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import TEMPLATES, Template, answer, template
from currreft_jax.data.rows import IMAGE, LineError, RowFile
from currreft_jax.rewards import MathsPoolError, RowError, boxes, choice
from currreft_jax.structs import Boxes, Frame, Row
from currreft_jax.world.question_text import user_text
from currreft_jax.world.questions import KINDS, TASKS, make_question
from currreft_jax.world.scenes import FRAME, domains, make_scene, render_image
from currreft_jax.world.settings import WorldSettings

SHOWN_SIDE = 504  # pixels of a scene's image, which has 84


def main() -> None:
    """Run the program."""
    options = _parser().parse_args()
    try:
        options.run(options)
    except (ValueError, OSError, MathsPoolError) as error:
        sys.exit(f"dataset: {plain(str(error))}")


def check(options: argparse.Namespace) -> None:
    """Prints what is wrong with files of rows, and exits with 1 if it is more than notes."""
    defaults = {"image_root": options.image_root, "kind": options.kind, "task": options.task}
    parts = [(None, options.files), ("train", options.train), ("test", options.test)]
    sources = [Source(file, part, **defaults) for part, files in parts for file in files]
    if not sources:
        raise ValueError("no files to check; name some, or some with --train and some with --test")
    processor, budget = _sight(options)
    wording = template(options.template)
    report = examine(sources, budget, processor=processor, wording=wording, threads=options.threads, watch=_progress)
    if options.out:
        Path(options.out).write_text(json.dumps(report.as_keys(), indent=1) + "\n", "utf-8")
    print(plain("\n".join(report_lines(report, options.examples))))
    if report.errors:
        sys.exit(1)


def show(options: argparse.Namespace) -> None:
    """Prints a row as the model will see it, and writes its images with their boxes drawn."""
    if options.file == "world":
        return show_world(options)
    processor, budget = _sight(options)
    wording = template(options.template)
    with RowFile(options.file, image_root=options.image_root, kind=options.kind, task=options.task) as file:
        index = find_row(file, options.row)
        row, where = file[index], file.where(index)
    try:
        images = [open_image(path) for path in row.images]
        originals = [Frame(image.width, image.height) for image in images]
        frames = [(original, budget.resized(original)) for original in originals]
    except ImageError as error:
        raise ValueError(f"{where}: {error}; --image-root names the folder that paths start from") from error
    try:
        print(plain("\n".join(row_lines(row, where, frames, budget, wording, processor))))
    except RowError as error:
        raise ValueError(f"{where}: {error.problem}") from error
    out = Path(options.out or f"row-{index + 1}.png")
    for number, (image, (_, resized)) in enumerate(zip(images, frames, strict=True), 1):
        seen = image.resize((resized.width, resized.height), Image.Resampling.BICUBIC)
        path = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        (drawn_row(row, seen, frames) if number == 1 else seen).save(path)
        print(f"written    {path}")


def find_row(file: RowFile, name: str) -> int:
    """The place of a row that is named by its number, from 1, or by its id.

    Raises:
        ValueError: there is none.
    """
    if name.isascii() and name.isdigit():
        if 1 <= int(name) <= len(file):
            return int(name) - 1
        raise ValueError(f"{file.path} has {len(file)} rows, not a row {name}; an id of digits is written id={name}")
    wanted = name.removeprefix("id=")
    for index in range(len(file)):
        try:
            if file[index].id == wanted:
                return index
        except LineError:  # `check` tells of the rows that cannot be read
            continue
    raise ValueError(f"{file.path} has no row of id {wanted!r}; write a number from 1 to {len(file)}, or another id")


def row_lines(
    row: Row, where: str, frames: Frames, budget: Budget, wording: Template, processor: Processor | None
) -> list[str]:
    """A row as the model will see it."""
    lines = [f"row        {where}, id {row.id}", f"asks       {row.kind.value} {row.task.value}"]
    for image, (original, resized) in zip(row.images, frames, strict=True):
        tokens = budget.image_tokens(resized)
        lines.append(f"image      {image}: {_shown(original)}, seen as {_shown(resized)} in {tokens} tokens")
    if row.frame:
        lines.append(f"frame      boxes are measured in {_shown(row.frame)}")
    named = {"source": row.source, "split": row.split, "origin": row.origin}
    named |= {} if row.kind is Kind.CHAT else {"gold": row.solution}
    lines += [f"{name:<10} {value}" for name, value in named.items() if value]
    lines += [f"learnt     {turn.text}" for turn in answer(row, frames) if turn.role == "assistant"]
    images = sum(budget.image_tokens(resized) for _, resized in frames)
    if processor:
        tokens = prompt_of(row, processor, wording, frames, budget, where).tokens
        lines.append(f"prompt     {len(tokens)} tokens, {images} of them images; {budget.max_prompt_tokens} may be")
        pad = str(processor.tokenizer.convert_ids_to_tokens(processor.config.image_token_id))
        whole = str(processor.tokenizer.decode(tokens.tolist()))
        text = re.sub(f"({re.escape(pad)})+", lambda run: f"{pad} x {len(run[0]) // len(pad)}", whole)
    else:
        text = prompt_text(row, wording, frames)
        characters = len(text) - len(IMAGE) * len(frames)
        lines.append(
            f"prompt     {images} tokens of images, {characters} characters of text; {budget.max_prompt_tokens} tokens"
            " may be; --model counts the text's and shows the chat template"
        )
    return [*lines, "-" * 40, text, "-" * 40]


def drawn_row(row: Row, image: Image.Image, frames: Frames) -> Image.Image:
    """The first image as the model sees it, with its row's boxes: right ones green, the texts' others orange.

    A box of an option bears its letter, any other box of the texts its number.
    """
    right = choice.gold_letters(row) if row.kind is Kind.CHOICE else frozenset[str]()
    for index, box in enumerate(_placed(np.array(row.boxes).reshape(-1, 4), row, frames)):
        letters = [
            letter for letter, option in zip(ascii_uppercase, row.options, strict=False) if f"{{box:{index}}}" in option
        ]
        color = GREEN if right & set(letters) else ORANGE
        image = draw_boxes(image, [box], ["/".join(letters) or str(index + 1)], color)
    golds = _placed(gold_corners(row), row, frames)
    return draw_boxes(image, golds, ["gold"] * len(golds), GREEN)


def report_lines(report: Report, examples: int) -> list[str]:
    """A report as tables, with so many examples of each problem in each file."""
    tokens = "tokens" if report.texts_counted else "image tokens"
    columns = f"{'rows':>8}{'images':>8}{tokens:>16}{'characters':>12}"
    lines = [f"{'file':<40}{columns}", f"{'':<40}{'':>16}{'median':>8}{'most':>8}{'most':>12}"]
    lines += [
        f"{size.file:<40}{size.rows:>8}{size.images:>8}{size.median_tokens:>8}{size.most_tokens:>8}"
        f"{size.most_characters:>12}"
        for size in report.sizes
    ]
    if report.balances:
        lines += ["", f"{'file':<40}{'kind':<8}{'task':<10}{'rows':>8}   right answers"]
    lines += [
        f"{file:<40}{counted.kind.value:<8}{counted.task.value:<10}{counted.rows:>8}   {counted}"
        for file, counted in report.balances
    ]
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        groups[finding.problem, finding.file].append(finding)
    if groups:
        lines += ["", f"{'problem':<40}{'rows':>8}   file"]
    for (problem, file), findings in groups.items():
        name = f"note: {problem}" if findings[0].problem in NOTES else problem
        lines += [f"{name:<40}{len(findings):>8}   {file}"]
        lines += [f"    {finding.where}: {finding.said}" for finding in findings[:examples]]
        lines += [f"    and {len(findings) - examples} more"] * (len(findings) > examples)
    errors, rows = len(report.errors), sum(size.rows for size in report.sizes)
    return [
        *lines,
        "",
        *(f"not checked: {what}" for what in report.unchecked),
        f"files {len(report.sizes)}, rows {rows}, errors {errors}, notes {len(report.findings) - errors}",
    ]


def plain(text: str) -> str:
    """A text without the control characters by which a file's content could rule a terminal."""
    return "".join(it if it.isprintable() or it in "\n\t" else repr(it)[1:-1] for it in text)


def _placed(corners: np.ndarray, row: Row, frames: Frames) -> list[tuple[float, float, float, float]]:
    """Boxes of the row's frame, in that of the first image as the model sees it."""
    if not len(corners):
        return []
    original, resized = frames[0]
    placed = boxes.rescale(Boxes(corners, row.frame or original), resized)
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in placed.corners.tolist()]


def _sight(options: argparse.Namespace) -> tuple[Processor | None, Budget]:
    """The processor of the model, if one is named, and what a prompt may take."""
    most = options.max_prompt_tokens
    smallest, largest = options.min_pixels, options.max_pixels
    if not options.model:
        return None, Budget(most, smallest or processors.MIN_PIXELS, largest or PAPER_PIXELS)
    processor = processors.load(options.model, min_pixels=smallest, max_pixels=largest)
    return processor, Budget(most, processor.min_pixels, processor.max_pixels, processor.config.vision)


def _progress(items: Iterable[Any], name: str, total: int) -> Iterable[Any]:
    return tqdm(items, desc=name, total=total, disable=None, leave=False)


def _shown(frame: Frame) -> str:
    return f"{frame.width} x {frame.height}"


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def show_world(options: argparse.Namespace) -> None:
    """Prints what is asked about a scene of the embedded world, and writes its image with every object's box."""
    name, _, number = options.row.rpartition(":")
    known, settings = domains(WorldSettings()), WorldSettings()
    if not number.isdecimal() or (name or "in") not in known:
        raise ValueError(f"show world takes N or DOMAIN:N, such as in:7; the domains are {', '.join(known)}")
    shown = make_scene(0, int(number), known[name or "in"], settings)
    for kind in KINDS:
        for task in TASKS:
            row = make_question(shown, task, kind, image="", split="", settings=settings).row
            asked = user_text(row).replace("\n", "\n" + " " * 20)
            print(f"{kind.value:<8}{task.value:<12}{asked}\n{'':<20}-> {row.solution}")
    out = options.out or f"world-{name or 'in'}-{number}.png"
    labels = [" ".join(obj.pair) for obj in shown.objects]
    large = render_image(shown).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.NEAREST)
    factor = SHOWN_SIDE / FRAME.width
    boxes = [(a * factor, b * factor, c * factor, d * factor) for a, b, c, d in (obj.box for obj in shown.objects)]
    draw_boxes(large, boxes, labels).save(out)
    print(f"image: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m currreft_jax.dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_check(commands.add_parser("check", help="find what is wrong with files of rows", description=_CHECKS))
    _add_show(commands.add_parser("show", help="see one row as the model does", description=_SHOWS))
    building = commands.add_parser("build", help="make rows of published data sets, or a world to learn in")
    builders.add_arguments(building)
    building.set_defaults(run=builders.run)
    return parser


_CHECKS = """\
Reads every row and decodes every image. Errors: rows that cannot be read; missing or unreadable images (damaged, of
too many pixels, too thin); prompts over the budget; boxes that leave their frame or vanish when the image is resized;
frames of another shape than the image; gold answers that their own reward cannot read; ids used twice; rows that ask
the same of the same images; images, and questions without images, that stand in training and in testing. Images are
the same where all decoded pixels are: a shrunk or recompressed copy is not found. Notes: frames of another size than
the image, questions of training and testing that are worded alike, keys that play no part, answers out of balance.
Exits with 1 if there are errors.
"""

_SHOWS = """\
Prints a row's prompt, its tokens and frames, and writes its image resized as the model sees it, with the boxes of the
gold answer in green and those of the texts in orange, by option letter or number; the right option's is green, too.
"""


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=check)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        default=[],
        help='rows, as JSON lines or a JSON list; their "split" says what is for training',
    )
    parser.add_argument(
        "--train", metavar="FILE", nargs="+", default=[], help="files for training, whatever their splits"
    )
    parser.add_argument(
        "--test", metavar="FILE", nargs="+", default=[], help="files for testing, whatever their splits"
    )
    parser.add_argument("--out", metavar="FILE", help="where the whole report goes, as JSON")
    parser.add_argument(
        "--examples", type=int, default=5, metavar="N", help="shown of each problem in each file (default %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="that decode images, each with one in memory (default %(default)s)",
    )
    _add_reading(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=show)
    parser.add_argument("file", metavar="FILE", help="rows, as JSON lines or a JSON list; or world")
    parser.add_argument(
        "row", metavar="N", help="the row's number, from 1, or its id (id=7 where that is a number); of world a scene"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="where the image goes; further ones get -2, -3 (default row-N.png)"
    )
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """What both commands need to read a row and to see it as the model does."""
    parser.add_argument(
        "--image-root", metavar="FOLDER", help="what image paths start from (default: the file's folder)"
    )
    parser.add_argument("--kind", type=Kind, choices=list(Kind), metavar="KIND", help=_one_of(Kind))
    parser.add_argument("--task", type=Task, choices=list(Task), metavar="TASK", help=_one_of(Task))
    parser.add_argument("--model", metavar="FOLDER", help="checkpoint or hub id whose processor counts tokens")
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        metavar="N",
        help=f"area that larger images are shrunk to (default: the model's; without one {PAPER_PIXELS:,}, the paper's)",
    )
    parser.add_argument(
        "--min-pixels",
        type=_positive,
        metavar="N",
        help=f"area that smaller images are enlarged to (default: the model's; without one {processors.MIN_PIXELS:,})",
    )
    parser.add_argument(
        "--max-prompt-tokens",
        type=_positive,
        metavar="N",
        default=PAPER_PROMPT_TOKENS,
        help="that a prompt may take, with its images (default %(default)s)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        default=next(iter(TEMPLATES)),
        help=f"wording of the prompts: {', '.join(TEMPLATES)} or package.module:NAME (default %(default)s)",
    )


def _one_of(names: type[Kind] | type[Task]) -> str:
    return f"of rows that name none, as the authors' files do: {', '.join(member.value for member in names)}"


if __name__ == "__main__":
    main()
