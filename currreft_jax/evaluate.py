"""Evaluate models on suites of rows: one answers file for each pair, and a table; compare models by their answers.

  python -m currreft_jax.evaluate --config=configs/eval.py
  python -m currreft_jax.evaluate --model=runs/demo/stage3 --rows rows/test/in-*.jsonl
  python -m currreft_jax.evaluate --model=Qwen/Qwen2.5-VL-3B-Instruct --rows=test.jsonl --images=original,blank
  python -m currreft_jax.evaluate --endpoint=http://localhost:8000/v1 --model=gpt-4o --rows=test.jsonl
  python -m currreft_jax.evaluate --model=runs/demo/stage3 --benchmarks=mmbench=MMBench_DEV_EN.tsv,math=test.jsonl
  python -m currreft_jax.evaluate --compare=runs/eval-tiny/base,runs/eval-tiny/stage3 --csv=compared.csv
  python -m currreft_jax.evaluate --check-table=published.csv

A model is a hub id, a folder of Hugging Face's or of tools.convert_weights, a stage's folder of a run, or one of its
checkpoints; with --endpoint, its name at an OpenAI-compatible server, whose key comes from $OPENAI_API_KEY. The answers
of a model to a suite go to OUT/MODEL/SUITE.jsonl, and what they depend on to a manifest beside them. The same command
continues an evaluation that was stopped, at the next row. Each accuracy is given twice: strict, with layout and tags as
in training, and readable, what a careful person reads in the same text. Rows that share images with a model's training
are refused.

--benchmarks reads published files as downloaded: mathvista, math (MATH-500), ai2d, mmvet, mmbench, ocrbench and
llavabench. Their scores go to OUT/MODEL/NAME.verdicts.json. --extraction=G1, G2 or G3 reads answers as VLMEvalKit's
rules do; --judge with --judge_url names a model that reads and grades what no rule can. See docs/benchmarks.md.

--compare takes folders of models' answers, and prints means with intervals, the difference of each model and the one
before it, and what that decides; `python -m currreft_jax.report` shows the same as a page, with figures. --check-table
finds figures of a published table that no number of rows gives.

Every setting is a flag, --config.NAME=VALUE, with and without a config file. docs/evaluate_program.md describes the
files, and docs/evaluation.md the statistics.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from currreft_jax.config import Evaluation
from currreft_jax.config.flags import flags_parser, refuse_command_line
from currreft_jax.config.missing import describe_error
from currreft_jax.config.output import local_path
from currreft_jax.evaluation.command_line import define_flags, settings_of_flags
from currreft_jax.rewards import MathsPoolError


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; `settings_of_flags` validates the settings."""
    return flags_parser("evaluate", example=Evaluation(), validate=lambda _: None)(arguments)


def read_only(args: flags.FlagValues) -> str | int:
    """Compares models, or checks a table; returns the exit code, or an error."""
    from currreft_jax.evaluation.check_table import find_faults, format_faults
    from currreft_jax.evaluation.compare import compare_models, read_model_answers
    from currreft_jax.evaluation.comparison_tables import format_comparison, write_comparison_csv
    from currreft_jax.evaluation.figures import read_figures

    try:
        if args["check-table"].value:
            figures = read_figures(args["check-table"].value)
            faults = find_faults(figures)
            print(format_faults(len(figures), faults))
            return 1 if faults else 0
        comparison = compare_models([read_model_answers(folder) for folder in args.compare])
        print(format_comparison(comparison))
        if args.csv:
            write_comparison_csv(comparison, local_path(args.csv))
    except (ValueError, OSError) as error:
        return f"evaluate: {describe_error(error)}"
    return 0


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    args = flags.FLAGS
    if args["check-table"].value or args.compare:
        sys.exit(read_only(args))
    try:
        config = settings_of_flags(args.config)
    except ValueError as error:
        refuse_command_line("evaluate", str(error))

    from currreft_jax.endpoint import EndpointError
    from currreft_jax.evaluation.answerers import refuse_missing
    from currreft_jax.evaluation.runner import evaluate
    from currreft_jax.evaluation.summary import summary_table
    from currreft_jax.runtime import distributed
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.runtime.multihost import RefusedElsewhere, exit_refused

    def say(line: str) -> None:
        if distributed.is_main():
            print(f"evaluate: {line}", file=sys.stderr, flush=True)

    if not args["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        enable_compilation_cache()
        distributed.initialize(args.coordinator_address, args.num_processes, args.process_id)
        refuse_missing(config.models, config.template)
        files = evaluate(config, local_path(args.out or f"runs/{config.name}"), say)
        if distributed.is_main():
            print(summary_table(files))
    except (
        *(ValueError, OSError, ModuleNotFoundError),
        *(EndpointError, MathsPoolError, distributed.MissingProcess, RefusedElsewhere),
    ) as error:
        logging.debug("raised here", exc_info=True)
        exit_refused("evaluate", error)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
