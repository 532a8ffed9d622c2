"""Flags of the program evaluate, and the settings that they make. Loads no JAX."""

from __future__ import annotations

from absl import flags

from currreft_jax.config import (
    EvaluatedModel,
    Evaluation,
    ImageCondition,
    ScorerName,
    Source,
    Suite,
    validate_evaluation,
)
from currreft_jax.config.flags import define_config

_SAMPLED_TEMPERATURE = 1.0


def define_flags() -> None:
    """Defines the program's flags, only when it runs: other programs have flags of the same names."""
    define_config(Evaluation())
    flags.DEFINE_list("model", [], "models to evaluate, instead of the config's")
    flags.DEFINE_string("endpoint", None, "base URL of an OpenAI-compatible server that has the models of --model")
    flags.DEFINE_list("rows", [], "files of rows, each a suite, instead of the config's suites")
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
    if args.endpoint and not args.model:
        raise ValueError("--endpoint needs --model, the model's name at the server")
    if args.csv and not args.compare:
        raise ValueError("--csv needs --compare")
    if args.model:
        config.models = [EvaluatedModel(path, endpoint=args.endpoint or "") for path in args.model]
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
