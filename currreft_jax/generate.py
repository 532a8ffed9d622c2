"""Ask a model about an image; the answer appears as it is written.

  python -m currreft_jax.generate --demo
  python -m currreft_jax.generate --image=street.jpg --prompt='Where is the red car?' --boxes=found.png
  python -m currreft_jax.generate --model=Qwen/Qwen2.5-VL-3B-Instruct --image=street.jpg --samples=4 --temperature=1
  python -m currreft_jax.generate --model=runs/demo/stage1 --demo
  python -m currreft_jax.generate --replay=runs/demo/stage1/rollouts/1.jsonl:3:5

Without --model, the small model of the package answers. It knows drawn scenes of coloured shapes only (docs/world.md),
and describes them without --prompt. --demo asks about such a scene, an easy one, says the right answer beside the
model's, and draws both into runs/generate-demo.png; --demo 0, --demo 1 and so on ask about others.
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

from currreft_jax.config.missing import describe_error, describe_missing
from currreft_jax.sampling.command_line import make_parser, sampling_settings
from currreft_jax.world import base
from currreft_jax.world.demo import EASY_SCENE, demo_row, demo_scene, demo_verdict
from currreft_jax.world.pretraining import CAPTION_PROMPTS
from currreft_jax.world.question_text import user_text
from currreft_jax.world.scenes import render_image

_DEMO_PICTURE = Path("runs/generate-demo.png")
_DEMO_SCALE = 6  # of 84 pixels
_BEFORE_TRAINING = (
    "before training the small model answers at once, and finds one box in six; `make demo` teaches it to look first:"
    " ask again with --model=runs/demo/stage3"
)
_ONLY_SCENES = (
    "the package's small model answers, which knows drawn scenes of coloured shapes only; for photographs and other"
    " questions name one, such as --model=Qwen/Qwen2.5-VL-3B-Instruct"
)
_IMAGE_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = make_parser(__doc__).parse_args(arguments)
    try:
        if options.replay:
            return print_replay(options.replay)
        generate(options)
    except (ValueError, OSError) as error:  # what the package raises for bad input
        print(f"generate: {describe_error(error)}", file=sys.stderr)
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
    settings = sampling_settings(options)
    number = None if options.image else options.demo
    images = options.image if number is None else [render_image(demo_scene(number))]
    row = None if number is None or options.prompt else demo_row(number)
    default_question = user_text(row) if row else "" if options.model else CAPTION_PROMPTS["boxes"]
    question = options.prompt or default_question
    if not question or not (options.prompt or images):
        raise ValueError("nothing to answer: give --prompt, or --demo")
    if options.boxes and not images:
        raise ValueError("--boxes draws on an image: give one with --image")
    if options.boxes and options.boxes.suffix.lower() not in _IMAGE_FORMATS:
        raise ValueError(f"--boxes={options.boxes}: name a .png, .jpg or .webp file")
    if missing := [image for image in options.image if not Path(image).exists()]:
        raise ValueError(describe_missing(missing[0]))
    source = options.model or base.checkpoint()
    out = options.boxes or (None if number is None else _DEMO_PICTURE)
    if number is not None:
        easy = ", an easy one; --demo N asks about another" if number == EASY_SCENE else ""
        _say(f"the question, about test scene {number}{easy}: {question}")
    elif not options.model:
        _say(_ONLY_SCENES)
    _say("loading and compiling; the answer follows")

    from currreft_jax.data.answer_boxes import draw_answer_boxes
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.runtime.timing import ended_by_ctrl_c
    from currreft_jax.sampling.console import print_completions
    from currreft_jax.sampling.sampler import stream
    from currreft_jax.session.sources import load_source

    enable_compilation_cache()
    processor, model, params = load_source(source, dtype=options.dtype, max_pixels=options.max_pixels)
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    prompt = processor.prompt([{"role": "user", "content": content}], images, name="the prompt")
    rollouts = stream(model, params, processor, [prompt], settings, seed=options.seed)
    with ended_by_ctrl_c():
        texts = print_completions(rollouts, processor.decode, settings.max_new_tokens)
    if row:
        verdict = demo_verdict(row, texts[-1], prompt.images[0].resized)
        answer = "the last answer" if len(texts) > 1 else "the model's"
        _say(f"the right answer: {row.solution}; by the reward of training {answer} is {verdict}")
        if not options.model:
            _say(_BEFORE_TRAINING)
    elif number is not None:
        _say("the answer is not judged: only the scene's own question, without --prompt, has a right answer")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        frames, scale = (prompt.images[0].resized, prompt.images[0].original), 1 if number is None else _DEMO_SCALE
        _say(draw_answer_boxes(images[0], texts[-1], *frames, out, row=row, scale=scale))


def print_replay(location: str) -> int:
    """Replays a completion of a training run; returns 0 if the tokens are the recorded ones.

    Raises:
        ValueError: there is no such completion, or the policy that sampled it was not kept.
        OSError: a file that cannot be read.
    """
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.runtime.timing import ended_by_ctrl_c
    from currreft_jax.training.replay import replay_completion

    enable_compilation_cache()
    with ended_by_ctrl_c():
        result = replay_completion(location)
    print(result.text)
    difference = f"log-probs at most {result.logp_difference:.1e} apart"
    same = f"the same {len(result.replayed)} tokens as in the file, {difference}"
    _say(result.mismatch or same)
    return 1 if result.mismatch else 0


def _say(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
