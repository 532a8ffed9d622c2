"""Sample answers, judge them, and keep the best ones to train on: rejected-sample self-improvement.

  python -m currreft_jax.reject --config=configs/reject.py
  python -m currreft_jax.reject --config=configs/reject.py:tiny --model=currreft_jax/world/base
  python -m currreft_jax.reject --model=runs/demo/stage3 --rows=rows/a.jsonl,rows/b.jsonl
  python -m currreft_jax.reject --model=M --rows=a.jsonl --judge=qwen2.5-vl-72b --judge_endpoint=http://localhost:8000/v1
  python -m currreft_jax.reject --config=configs/reject.py:tiny --replay --threshold=75

Each row is answered several times, by a model of this program or, with --endpoint, by one at an OpenAI-compatible
server. A judge scores each answer from 0 to 100; the best answer of a row is kept if it scores above the threshold and,
where the gold answer can be checked, is right by the rules. Sampling stops when the quotas of the sources are filled;
the rows of a source that falls short are answered again.

OUT gets kept.jsonl and held_out.jsonl, which `train` takes as rows; summary.json; manifest.json, what the answers
depend on; and ledger.jsonl, every answer and judgement. The same command goes on where a job was stopped. --replay
selects from the ledger alone, such as with another threshold, and prints what each threshold would keep.

A key for the servers comes from $OPENAI_API_KEY. Every setting is a flag, --config.NAME=VALUE, with and without a
config file. docs/reject.md describes the files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from currreft_jax.config import Rejection
from currreft_jax.config.flags import flags_parser, refuse_command_line
from currreft_jax.config.missing import describe_error
from currreft_jax.rejection.command_line import define_flags, job_folder, settings_of_flags
from currreft_jax.rewards import MathsPoolError, RewardError


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; `settings_of_flags` validates the settings."""
    return flags_parser("reject", example=Rejection(), validate=lambda _: None)(arguments)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    args = flags.FLAGS
    try:
        settings = settings_of_flags(args.config)
        out = job_folder(settings)
    except ValueError as error:
        refuse_command_line("reject", str(error))

    from currreft_jax.endpoint import EndpointError
    from currreft_jax.evaluation.answerers import refuse_missing
    from currreft_jax.rejection.runner import reject, replay
    from currreft_jax.rejection.summary import read_summary, summary_tables
    from currreft_jax.runtime import distributed
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache

    def say(line: str) -> None:
        if distributed.is_main():
            print(f"reject: {line}", file=sys.stderr, flush=True)

    if not args["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        enable_compilation_cache()
        if args.replay:
            files = replay(settings, out, say)
        else:
            distributed.initialize(args.coordinator_address, args.num_processes, args.process_id)
            refuse_missing([settings.model], settings.template)
            files = reject(settings, out, say)
    except (
        *(ValueError, OSError, ModuleNotFoundError),
        *(EndpointError, MathsPoolError, RewardError, distributed.MissingProcess),
    ) as error:
        logging.debug("raised here", exc_info=True)
        sys.exit(f"reject: {describe_error(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    if files:
        print(summary_tables(read_summary(files.summary)))
        print(f"\n{files.kept}: {files.num_kept} rows to train on; {files.num_held_out} are held out")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
