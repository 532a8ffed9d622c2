"""Ask a model about an image; the answer appears as it is written.

  python -m currreft_jax.generate --demo
  python -m currreft_jax.generate --image=street.jpg --prompt='Where is the red car?' --boxes=found.png
  python -m currreft_jax.generate --model=Qwen/Qwen2.5-VL-3B-Instruct --image=street.jpg --samples=4 --temperature=1
  python -m currreft_jax.generate --model=runs/demo/stage1 --demo
  python -m currreft_jax.generate --replay=runs/demo/stage1/rollouts/1.jsonl:3:5

Without --model, the small model of the package answers. It knows drawn scenes of coloured shapes only (docs/world.md),
and describes them without --prompt. --demo asks about such a scene, and draws the answer into runs/generate-demo.png.
Without --temperature, one sample is greedy, several are sampled at temperature 1. --boxes draws the boxes that the last
sample names, in its <answer> or else in the whole text, on the first image.
--replay samples a completion of a training run again, with the policy that sampled it. The exit status is 0 if the
tokens are those of the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.config import Sampling, validate_sampling
from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.output import output_path
from currreft_jax.world import base
from currreft_jax.world.demo import demo_question, demo_scene
from currreft_jax.world.pretraining import CAPTION_PROMPTS
from currreft_jax.world.scenes import render_image

_DEMO_PICTURE = Path("runs/generate-demo.png")
_OWN_MODEL_TOKENS = 128  # more than any answer that the package's model was trained to give
_ONLY_SCENES = (
    "the package's small model answers, which knows drawn scenes of coloured shapes only; for photographs and other"
    " questions name one, such as --model=Qwen/Qwen2.5-VL-3B-Instruct"
)
_IMAGE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.replay:
            return print_replay(options.replay)
        generate(options)
    except (ValueError, OSError) as error:  # what the package raises for bad input
        print(f"generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    """Prints the answers, and draws their boxes.

    Raises:
        ValueError: an option, an image or a checkpoint that cannot be used.
        OSError: a file that cannot be read or written.
    """
    settings = _sampling(options)
    is_demo = options.demo and not options.image
    images = [render_image(demo_scene())] if is_demo else options.image
    default_question = demo_question() if is_demo else "" if options.model else CAPTION_PROMPTS["boxes"]
    question = options.prompt or default_question
    if not question or not (options.prompt or images):
        raise ValueError("nothing to answer: give --prompt, or --demo")
    if options.boxes and not images:
        raise ValueError("--boxes draws on an image: give one with --image")
    if options.boxes and options.boxes.suffix.lower() not in _IMAGE_FORMATS:
        raise ValueError(f"--boxes={options.boxes}: name a .png, .jpg or .webp file")
    source = options.model or base.checkpoint()
    out = options.boxes or (_DEMO_PICTURE if is_demo else None)
    if is_demo:
        _say(f"the question: {question}")
    elif not options.model:
        _say(_ONLY_SCENES)
    _say("loading and compiling; the answer follows")

    from currreft_jax.data.answer_boxes import draw_answer_boxes
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.sampling.console import print_completions
    from currreft_jax.sampling.sampler import stream
    from currreft_jax.session.sources import load_source

    enable_compilation_cache()
    processor, model, params = load_source(source, dtype=options.dtype, max_pixels=options.max_pixels)
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    prompt = processor.prompt([{"role": "user", "content": content}], images, name="the prompt")
    rollouts = stream(model, params, processor, [prompt], settings, seed=options.seed)
    texts = print_completions(rollouts, processor.decode, settings.max_new_tokens)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        frames = prompt.images[0].resized, prompt.images[0].original
        _say(draw_answer_boxes(images[0], texts[-1], *frames, out))


def print_replay(location: str) -> int:
    """Replays a completion of a training run; returns 0 if the tokens are the recorded ones.

    Raises:
        ValueError: there is no such completion, or the policy that sampled it was not kept.
        OSError: a file that cannot be read.
    """
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.training.replay import replay_completion

    enable_compilation_cache()
    result = replay_completion(location)
    print(result.text)
    difference = f"log-probs at most {result.logp_difference:.1e} apart"
    same = f"the same {len(result.replayed)} tokens as in the file, {difference}"
    _say(result.mismatch or same)
    return 1 if result.mismatch else 0


def _say(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)


def _sampling(options: argparse.Namespace) -> Sampling:
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
    return Sampling().max_new_tokens if options.model else _OWN_MODEL_TOKENS


def _parser() -> argparse.ArgumentParser:
    defaults, caption = Sampling(), CAPTION_PROMPTS["boxes"]
    parser = CommandParser(
        prog="python -m currreft_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="SOURCE", help="hub id, model folder, or a run's stage (default: the package's small model)")
    add(
        "--image", metavar="FILE", action="append", default=[], help="an image, repeatable; images precede the question"
    )
    add("--prompt", metavar="TEXT", help=f"the question (default, without --model: {caption!r})")
    add("--demo", action="store_true", help="ask about a drawn scene of coloured shapes")
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
    limits = f"{defaults.max_new_tokens}; {_OWN_MODEL_TOKENS} without --model"
    add("--max-new-tokens", metavar="N", type=int, help=f"token limit of an answer (default {limits})")
    add("--seed", metavar="N", type=int, default=0, help="the same seed gives the same answers (default 0)")
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="precision to load the model in (default: that of its weights)")
    add("--max-pixels", metavar="N", type=int, help="shrink larger images to this area (default: the checkpoint's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
