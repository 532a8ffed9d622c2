"""Flags of the program reject, and the settings that they make. Loads no JAX."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from currreft_jax.config import (
    EvaluatedModel,
    Judge,
    JudgeKind,
    QuotaSource,
    Rejection,
    Source,
    Suite,
    validate_rejection,
)
from currreft_jax.config.file_flags import define_files, expand_files, name_files
from currreft_jax.config.flags import define_config, refuse_replaced
from currreft_jax.config.output import local_path
from currreft_jax.judges import validate_judge
from currreft_jax.rewards.registry import validate_reward_names

# The settings that flags replace.
_REPLACED = {
    **{"model": "model", "rows": "sources", "suites": "suites", "threshold": "threshold", "budget": "budget"},
    **{"judge": "judge.model", "judge_endpoint": "judge.url"},
}


def define_flags() -> None:
    """Defines the program's flags, only when it runs: other programs have flags of the same names."""
    define_config(Rejection())
    flags.DEFINE_string("model", None, "model that answers, instead of the config's")
    flags.DEFINE_string("endpoint", None, "base URL of an OpenAI-compatible server that has the model: distillation")
    define_files("rows", "files or patterns of rows, each file a source without a quota, instead of the config's")
    define_files("suites", "files or patterns of rows to evaluate on, with which kept rows must share no image")
    flags.DEFINE_string("judge", None, "rules, or the judge's name at --judge_endpoint")
    flags.DEFINE_string("judge_endpoint", None, "base URL of the judge's server; by default the config's")
    flags.DEFINE_float("threshold", None, "overall score above which an answer is kept")
    flags.DEFINE_integer(
        "budget",
        None,
        "calls of all servers and judges together at most, those of interrupted runs of the job included",
    )
    flags.DEFINE_string("out", None, "folder of the job; runs/NAME by default, of the config's name")
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, without a known launcher")
    flags.DEFINE_integer("num_processes", None, "number of processes, without a known launcher")
    flags.DEFINE_integer("process_id", None, "index of this process, from 0, without a known launcher")
    flags.DEFINE_bool("replay", False, "select again from the recorded answers and judgements, without a call")


def settings_of_flags(config: Rejection) -> Rejection:
    """Puts the program's own flags into the settings.

    Raises:
        ValueError: the settings are impossible.
    """
    args = flags.FLAGS
    refuse_replaced(_REPLACED)
    if args.endpoint and not args.model:
        raise ValueError("--endpoint needs --model, the model's name at the server")
    if args.judge_endpoint and not args.judge:
        raise ValueError("--judge_endpoint needs --judge, the judge's name at the server")
    if args.model:
        config.model = EvaluatedModel(args.model, endpoint=args.endpoint or "")
    if args.rows:
        files = expand_files(args.rows)
        config.sources = [QuotaSource(name, Source(file)) for name, file in zip(name_files(files), files, strict=True)]
    if args.suites:
        files = expand_files(args.suites)
        config.suites = [Suite(name, [Source(file)]) for name, file in zip(name_files(files), files, strict=True)]
    if args.judge == JudgeKind.RULES.value:
        config.judge = Judge()
    elif args.judge:
        config.judge.kind, config.judge.model = JudgeKind.ENDPOINT, args.judge
        config.judge.url = args.judge_endpoint or config.judge.url
    if args.threshold is not None:
        config.threshold = args.threshold
    if args.budget is not None:
        config.budget = args.budget
    validate_rejection(config)
    validate_reward_names(config.rewards)
    for judge in filter(None, (config.judge, config.second_judge)):
        validate_judge(judge)
    return config


def job_folder(config: Rejection) -> Path:
    """Returns the folder of the job.

    Raises:
        ValueError: it is no local path.
    """
    return local_path(flags.FLAGS.out or f"runs/{config.name}")
