"""The command line of `generate`."""

from __future__ import annotations

import argparse

from currreft_jax.config import Sampling, validate_sampling
from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.output import output_path
from currreft_jax.world.demo import EASY_SCENE
from currreft_jax.world.pretraining import CAPTION_PROMPTS

OWN_MODEL_TOKENS = 128  # more than any answer that the package's model was trained to give


def sampling_settings(options: argparse.Namespace) -> Sampling:
    """Returns the sampling settings of the options.

    Raises:
        ValueError: an option is impossible.
    """
    if not 0 <= options.seed < 2**31:  # as in the configs of all programs
        raise ValueError(f"--seed={options.seed}: it takes 0 to {2**31 - 1}")
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.samples == 1 and not options.top_k and options.top_p == 1 else 1.0
    settings = Sampling(
        group_size=options.samples,
        max_new_tokens=_token_limit(options),
        temperature=temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        ladder=(),
    )
    validate_sampling(settings)
    return settings


def _token_limit(options: argparse.Namespace) -> int:
    if options.max_new_tokens is not None:
        return options.max_new_tokens
    return Sampling().max_new_tokens if options.model else OWN_MODEL_TOKENS


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    defaults, caption = Sampling(), CAPTION_PROMPTS["boxes"]
    parser = CommandParser(
        prog="python -m currreft_jax.generate",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="SOURCE", help="hub id, model folder, or a run's stage (default: the package's small model)")
    add(
        "--image", metavar="FILE", action="append", default=[], help="an image, repeatable; images precede the question"
    )
    add("--prompt", metavar="TEXT", help=f"the question (default, without --model: {caption!r})")
    add(
        "--demo",
        metavar="N",
        nargs="?",
        type=int,
        const=EASY_SCENE,
        help=f"ask about drawn test scene N of coloured shapes (default {EASY_SCENE}, an easy one)",
    )
    add("--replay", metavar="FILE:LINE:G", help="replay completion G of a line of a run's rollouts, both from 1")
    add("--samples", metavar="N", type=int, default=1, help="number of answers (default 1)")
    add("--boxes", metavar="OUT", type=output_path, help="draw the boxes that the last answer names on the first image")
    add("--temperature", metavar="X", type=float, help="0 is greedy (default: 0 for one sample, else 1)")
    add("--top-k", metavar="K", type=int, default=defaults.top_k, help="sample from the K likeliest tokens (0: all)")
    add(
        "--top-p",
        metavar="P",
        type=float,
        default=defaults.top_p,
        help="sample from the likeliest of probability P (1: all)",
    )
    limits = f"{defaults.max_new_tokens}; {OWN_MODEL_TOKENS} without --model"
    add("--max-new-tokens", metavar="N", type=int, help=f"token limit of an answer (default {limits})")
    add("--seed", metavar="N", type=int, default=0, help="the same seed gives the same answers (default 0)")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="precision to load the model in (default: that of its weights)")
    add("--max-pixels", metavar="N", type=int, help="shrink larger images to this area (default: the checkpoint's)")
    return parser
