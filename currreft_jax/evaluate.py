"""Evaluate models on suites of rows: one answers file for each pair, and a table.

  python -m currreft_jax.evaluate --config=configs/eval.py
  python -m currreft_jax.evaluate --model=runs/demo/stage3 --rows=rows/test/in-detection.jsonl,rows/test/in-math.jsonl
  python -m currreft_jax.evaluate --model=Qwen/Qwen2.5-VL-3B-Instruct --rows=test.jsonl --images=original,blank

A model is a hub id, a folder of Hugging Face's or of tools.convert_weights, a stage's folder of a run, or one of its
checkpoints. The answers of a model to a suite go to OUT/MODEL/SUITE.jsonl, and what they depend on to a manifest beside
them. The same command continues an evaluation that was stopped, at the next row. Each accuracy is given twice: strict,
with layout and tags as in training, and readable, what a careful person reads in the same text. Rows that share images
with a model's training are refused.

Every setting is a flag, --config.NAME=VALUE, with and without a config file; `python -m pydoc
currreft_jax.config.Evaluation` describes them. docs/evaluate_program.md describes the files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from currreft_jax.config import (
    EvaluatedModel,
    Evaluation,
    ImageCondition,
    ScorerName,
    Source,
    Suite,
    validate_evaluation,
)
from currreft_jax.config.flags import define_config, flags_parser, refuse_command_line
from currreft_jax.rewards import MathsPoolError

_SAMPLED_TEMPERATURE = 1.0


def define_flags() -> None:
    """Defines the program's flags, only when it runs: other programs have flags of the same names."""
    define_config(Evaluation())
    flags.DEFINE_list("model", [], "models to evaluate, instead of the config's")
    flags.DEFINE_list("rows", [], "files of rows, each a suite, instead of the config's suites")
    flags.DEFINE_string("out", None, "folder of the answers; runs/NAME by default, of the config's name")
    flags.DEFINE_integer("samples", None, "completions of each row; several are sampled, at temperature 1")
    flags.DEFINE_enum(
        "scorer", None, [scorer.value for scorer in ScorerName], "official: the authors' figure beside ours"
    )
    flags.DEFINE_list("images", None, "original, blank, shuffled: images to evaluate with; the drop is a column")
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, without a known launcher")
    flags.DEFINE_integer("num_processes", None, "number of processes, without a known launcher")
    flags.DEFINE_integer("process_id", None, "index of this process, from 0, without a known launcher")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; `settings_of_flags` validates the settings."""
    return flags_parser("evaluate", example=Evaluation(), validate=lambda _: None)(arguments)


def settings_of_flags(config: Evaluation) -> Evaluation:
    """Puts the program's own flags into the settings.

    Raises:
        ValueError: the settings are impossible.
    """
    args = flags.FLAGS
    if args.model:
        config.models = [EvaluatedModel(path) for path in args.model]
    if args.rows:
        config.suites = [Suite(sources=[Source(file)]) for file in args.rows]
    if args.samples is not None:
        config.sampling.group_size = args.samples
        if args.samples > 1 and config.sampling.temperature == 0:
            config.sampling.temperature = _SAMPLED_TEMPERATURE
    if args.scorer:
        config.scorer = ScorerName(args.scorer)
    if args.images:
        known = [images.value for images in ImageCondition]
        if unknown := [name for name in args.images if name not in known]:
            raise ValueError(f"--images={unknown[0]}: it takes {', '.join(known)}")
        config.images = tuple(ImageCondition(name) for name in args.images)
    validate_evaluation(config)
    return config


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    args = flags.FLAGS
    try:
        config = settings_of_flags(args.config)
    except ValueError as error:
        refuse_command_line("evaluate", str(error))

    from currreft_jax.evaluation.runner import evaluate
    from currreft_jax.evaluation.summary import summary_table
    from currreft_jax.runtime import distributed

    def say(line: str) -> None:
        if distributed.is_main():
            print(f"evaluate: {line}", file=sys.stderr, flush=True)

    if not args["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        distributed.initialize(args.coordinator_address, args.num_processes, args.process_id)
        files = evaluate(config, Path(args.out or f"runs/{config.name}"), say)
        if distributed.is_main():
            print(summary_table(files))
    except (ValueError, OSError, ModuleNotFoundError, MathsPoolError, distributed.MissingProcess) as error:
        logging.debug("raised here", exc_info=True)
        sys.exit(f"evaluate: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
