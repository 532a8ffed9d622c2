"""Flags of the program evaluate, and the settings that they make. Loads no JAX."""

from __future__ import annotations

from dataclasses import replace

from absl import flags

from currreft_jax.config import (
    BenchmarkName,
    EvaluatedModel,
    Evaluation,
    Extraction,
    ImageCondition,
    JudgeKind,
    ScorerName,
    Source,
    Suite,
    validate_evaluation,
)
from currreft_jax.config.file_flags import define_files, expand_files, name_files
from currreft_jax.config.flags import define_config, refuse_replaced

_SAMPLED_TEMPERATURE = 1.0
# The settings that flags replace.
_REPLACED = {
    **{"model": "models", "rows": "suites", "images": "images", "scorer": "scorer", "extraction": "extraction"},
    **{"samples": "sampling.group_size", "judge": "judge.model", "judge_url": "judge.url"},
}


def define_flags() -> None:
    """Defines the program's flags, only when it runs: other programs have flags of the same names."""
    define_config(Evaluation())
    flags.DEFINE_list("model", [], "models to evaluate, instead of the config's")
    flags.DEFINE_string("endpoint", None, "base URL of an OpenAI-compatible server that has the models of --model")
    define_files("rows", "files or patterns of rows, each file a suite, instead of the config's suites")
    flags.DEFINE_list("benchmarks", [], "published files, each as NAME=FILE, besides or instead of the config's suites")
    generations = [extraction.value for extraction in Extraction]
    flags.DEFINE_enum("extraction", None, generations, "how benchmarks read answers; G1 to G3 as VLMEvalKit does")
    flags.DEFINE_string("judge", None, "model that reads and grades what no rule can, in benchmarks; with --judge_url")
    flags.DEFINE_string("judge_url", None, "base URL of the judge's OpenAI-compatible server")
    flags.DEFINE_string("out", None, "folder of the answers; runs/NAME by default, of the config's name")
    flags.DEFINE_integer("samples", None, "completions of each row; several are sampled, at temperature 1")
    flags.DEFINE_enum(
        "scorer", None, [scorer.value for scorer in ScorerName], "official: the authors' figure beside ours"
    )
    flags.DEFINE_list("images", None, "original, blank, shuffled: images to evaluate with; the drop is a column")
    flags.DEFINE_list("compare", [], "folders of models' answers to compare, OUT/MODEL; nothing is evaluated")
    flags.DEFINE_string("csv", None, "also write the numbers of --compare to this file")
    flags.DEFINE_string("check-table", None, "CSV file of published figures to check; nothing is evaluated")
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0, without a known launcher")
    flags.DEFINE_integer("num_processes", None, "number of processes, without a known launcher")
    flags.DEFINE_integer("process_id", None, "index of this process, from 0, without a known launcher")


def settings_of_flags(config: Evaluation) -> Evaluation:
    """Puts the program's own flags into the settings.

    Raises:
        ValueError: the settings are impossible.
    """
    args = flags.FLAGS
    refuse_replaced(_REPLACED)
    if args.endpoint and not args.model:
        raise ValueError("--endpoint needs --model, the model's name at the server")
    if args.csv and not args.compare:
        raise ValueError("--csv needs --compare")
    if args.model:
        config.models = [EvaluatedModel(path, endpoint=args.endpoint or "") for path in args.model]
    if args.rows:
        files = expand_files(args.rows)
        config.suites = [Suite(name, [Source(file)]) for name, file in zip(name_files(files), files, strict=True)]
    config.suites = [*config.suites, *map(_benchmark_suite, args.benchmarks)]
    if args.extraction:
        config.extraction = Extraction(args.extraction)
    if args.judge or args.judge_url:
        if not (args.judge and args.judge_url):
            raise ValueError("--judge and --judge_url need each other: the model's name, and the server's base URL")
        config.judge = replace(config.judge, kind=JudgeKind.ENDPOINT, model=args.judge, url=args.judge_url)
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


def _benchmark_suite(text: str) -> Suite:
    name, _, file = text.partition("=")
    known = [benchmark.value for benchmark in BenchmarkName]
    if name not in known or not file:
        raise ValueError(f"--benchmarks={text}: it takes NAME=FILE, with a name of {', '.join(known)}")
    return Suite(sources=[Source(file)], benchmark=BenchmarkName(name))
