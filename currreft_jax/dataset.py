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
import sys
from pathlib import Path

from currreft_jax.config import Kind, Task
from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.missing import describe_error
from currreft_jax.config.output import output_path
from currreft_jax.data import builders, show, validate
from currreft_jax.data import processor as processors
from currreft_jax.data.budget import DEFAULT_MAX_PIXELS, DEFAULT_MAX_PROMPT_TOKENS, PromptBudget
from currreft_jax.data.findings import format_findings
from currreft_jax.data.prompts import TEMPLATES, load_template
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.show import escape_control_characters
from currreft_jax.rewards import MathsPoolError


def main() -> None:
    """Runs the program."""
    options = _parser().parse_args()
    try:
        options.run(options)
    except (ValueError, OSError, MathsPoolError) as error:
        sys.exit(f"dataset: {escape_control_characters(describe_error(error))}")


def run_check(options: argparse.Namespace) -> None:
    """Prints what is wrong with files of rows; exits with 1 if there are errors."""
    defaults = {"image_root": options.image_root, "kind": options.kind, "task": options.task}
    splits = [(None, options.files), ("train", options.train), ("test", options.test)]
    files = [validate.InputFile(path, split, **defaults) for split, paths in splits for path in paths]
    if not files:
        raise ValueError("no files to check; name some, or some with --train and some with --test")
    processor, budget = _processor_and_budget(options)
    template = load_template(options.template)
    report = validate.validate_files(
        files, budget, processor=processor, template=template, threads=options.threads, progress=validate.progress_bar
    )
    if options.out:
        options.out.write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
    print(escape_control_characters("\n".join(format_findings(report, options.examples))))
    if report.errors:
        sys.exit(1)


def run_show(options: argparse.Namespace) -> None:
    """Prints a row and writes its images with their boxes drawn."""
    if options.file == "world":
        for line in show.show_world(options.row, options.out):
            print(line)
        return
    processor, budget = _processor_and_budget(options)
    template = load_template(options.template)
    with RowFile(options.file, image_root=options.image_root, kind=options.kind, task=options.task) as file:
        index = show.find_row(file, options.row)
        out = options.out or Path(f"row-{index + 1}.png")
        for line in show.show_row(file, index, out, budget, template, processor):
            print(escape_control_characters(line))


def _processor_and_budget(options: argparse.Namespace) -> tuple[processors.Processor | None, PromptBudget]:
    """Loads the processor if a model is given, and returns the limits of a prompt."""
    max_tokens, low, high = options.max_prompt_tokens, options.min_pixels, options.max_pixels
    if not options.model:
        return None, PromptBudget(max_tokens, low or processors.MIN_PIXELS, high or DEFAULT_MAX_PIXELS)
    processor = processors.load(options.model, min_pixels=low, max_pixels=high)
    return processor, PromptBudget(max_tokens, processor.min_pixels, processor.max_pixels, processor.config.vision)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m currreft_jax.dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_check(commands.add_parser("check", help="find what is wrong with files of rows", description=validate.__doc__))
    _add_show(commands.add_parser("show", help="see one row as the model does", description=show.__doc__))
    build = commands.add_parser("build", help="make rows of published data sets, or a world to learn in")
    builders.add_arguments(build)
    build.set_defaults(run=builders.run)
    return parser


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(run=run_check)
    add("files", metavar="FILE", nargs="*", default=[], help="JSON lines or JSON lists, parted by the rows' own splits")
    add("--train", metavar="FILE", nargs="+", default=[], help="files for training, whatever the rows' splits")
    add("--test", metavar="FILE", nargs="+", default=[], help="files for testing, whatever the rows' splits")
    add("--out", metavar="FILE", type=output_path, help="write the full report here, as JSON")
    add("--examples", type=int, default=5, metavar="N", help="shown of each problem in each file (default %(default)s)")
    cores = min(8, os.cpu_count() or 1)
    add("--threads", type=_positive, default=cores, metavar="N", help="for decoding images (default %(default)s)")
    _add_common(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(run=run_show)
    add("file", metavar="FILE", help="JSON lines or a JSON list; or world")
    add("row", metavar="N", help="row number, from 1, or id (id=7 if it is a number); of world a scene, [DOMAIN:]N")
    help_text = "write the image here; further ones get -2, -3 (default row-N.png)"
    add("--out", metavar="FILE", type=output_path, help=help_text)
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--image-root", metavar="FOLDER", help="folder that image paths are relative to (default: the file's)")
    for name, enum in (("kind", Kind), ("task", Task)):
        values = ", ".join(member.value for member in enum)
        add(f"--{name}", type=enum, choices=list(enum), metavar=name.upper(), help=f"of rows without one: {values}")
    add("--model", metavar="FOLDER", help="checkpoint or hub id whose processor counts tokens")
    for name, bound, default in (("min", "least", processors.MIN_PIXELS), ("max", "greatest", DEFAULT_MAX_PIXELS)):
        text = f"{bound} area of a resized image (default: the model's, or {default:,} without a model)"
        add(f"--{name}-pixels", type=_positive, metavar="N", help=text)
    limit = DEFAULT_MAX_PROMPT_TOKENS
    add("--max-prompt-tokens", type=_positive, metavar="N", default=limit, help="text and images (default %(default)s)")
    names = f"{', '.join(TEMPLATES)} or package.module:NAME"
    add("--template", metavar="NAME", default="paper", help=f"of the prompts: {names} (default %(default)s)")


if __name__ == "__main__":
    main()
