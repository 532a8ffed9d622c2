"""Ask a model about an image; the answer appears as it is written.

  python -m currreft_jax.generate --demo
  python -m currreft_jax.generate --image=street.jpg --prompt='Where is the red car?' --boxes=found.png
  python -m currreft_jax.generate --model=Qwen/Qwen2.5-VL-3B-Instruct --image=street.jpg --samples=4 --temperature=1
  python -m currreft_jax.generate --replay=runs/demo/stage1/rollouts/1.jsonl:3:5

Without --model, the small model that comes with the package answers; it knows only drawn scenes of coloured shapes
(docs/world.md), and without --prompt says what is where.
Without --temperature, one sample is the likeliest text, and several are drawn at temperature 1.

With --boxes, the boxes that the last sample names are drawn on the first image, in the image's own size. They are read
from its <answer>, or from the whole text where it has no such tag: JSON such as [x1, y1, x2, y2] or {"bbox_2d": [...]}.

With --replay, the policy that drew a completion of a training run draws it again, alone; whether the tokens are those
of the file is said on standard error, and is the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.config import Kind, Sampling, Task, validate_sampling
from currreft_jax.structs import Boxes, Completion, Frame, Reason, Rollout
from currreft_jax.world import base
from currreft_jax.world.lessons import CAPTIONS
from currreft_jax.world.prompts import user_text
from currreft_jax.world.questions import ask
from currreft_jax.world.scenes import Scene, domains, render, scene
from currreft_jax.world.settings import Settings

DEMO_SCENE = 3


class GenerateError(ValueError):
    """What was asked for cannot be done; the message names the file or option and the remedy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.replay:
            return replay(options.replay)
        generate(options)
    except (ValueError, OSError) as error:  # every refusal of the package is one of them
        print(f"generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    """Answers.

    Raises:
        ValueError: an option, an image or a checkpoint that cannot be used.
        OSError: a file that cannot be read or written.
    """
    settings = _settings(options)
    shown = demo()
    images = [render(shown)] if options.demo and not options.image else options.image
    asked = demo_question(shown) if options.demo and not options.image else "" if options.model else CAPTIONS["boxes"]
    question = options.prompt or asked
    if not question or not (options.prompt or images):
        raise GenerateError("nothing to answer: give --prompt, or --demo")
    if options.boxes and not images:
        raise GenerateError("--boxes draws on an image: give one with --image")
    if options.boxes and options.boxes.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise GenerateError(f"--boxes={options.boxes}: name a .png, .jpg or .webp file")
    folder = options.model or base.folder()

    from currreft_jax.data.images import open_image
    from currreft_jax.data.processor import load as load_processor
    from currreft_jax.models.hf import load as load_model
    from currreft_jax.rollout import stream

    processor = load_processor(folder, max_pixels=options.max_pixels)
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    prompt = processor.prompt([{"role": "user", "content": content}], images, name="the prompt")
    model, parameters = load_model(folder)
    model = replace(model, tokenizer_size=processor.tokenizer_size)
    rollouts = stream(model, parameters, processor, [prompt], settings, seed=options.seed)
    texts = show(rollouts, processor.decode, settings.max_new_tokens)
    if options.boxes:
        boxes = answered_boxes(texts[-1], prompt.images[0].resized, prompt.images[0].original)
        draw(open_image(images[0]), boxes, options.boxes)


def replay(place: str) -> int:
    """Draws a completion of a training run again; returns 0 if it is the same one.

    Raises:
        ValueError: there is no such completion, or the policy that drew it was not kept.
        OSError: a file that cannot be read.
    """
    from currreft_jax.redraw import redraw

    found = redraw(place)
    print(found.text)
    if found.written == found.drawn:
        apart = f"log-probs at most {found.logp_difference:.1e} apart"
        print(f"generate: the same {len(found.drawn)} tokens as in the file, {apart}", file=sys.stderr)
        return 0
    pairs = zip_longest(found.written, found.drawn)
    number, (then, now) = next((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    print(f"generate: token {number} is {now!r}, and in the file {then!r}", file=sys.stderr)
    return 1


def demo() -> Scene:
    """The scene that --demo asks about."""
    return scene(0, DEMO_SCENE, domains(Settings())["in"], Settings())


def demo_question(shown: Scene) -> str:
    """What it asks."""
    return user_text(ask(shown, Task.DETECTION, Kind.OPEN, image="", split="", settings=Settings()).row)


def show(rollouts: Iterable[Rollout], decode: Callable[[np.ndarray], str], limit: int) -> list[str]:
    """Writes the completions of one prompt to standard output as they grow.

    Several would mix, so that each waits until those before it are complete.

    Args:
        rollouts: of one prompt, each longer than the one before.
        decode: tokens to text.
        limit: tokens at which a completion is cut off.

    Returns:
        The texts.
    """
    place = written = 0
    texts: list[str] = []
    for rollout in rollouts:
        tokens, mask, lengths, finished = (
            np.asarray(x)[0] for x in (rollout.tokens, rollout.mask, rollout.lengths, rollout.finished)
        )
        texts = [decode(row[real]) for row, real in zip(tokens, mask, strict=True)]
        while place < len(texts):
            complete = finished[place] or lengths[place] == limit
            # A character of several bytes may still lack its last ones.
            text = texts[place] if complete else texts[place].rstrip("\ufffd")
            heading = f"--- {place + 1} of {len(texts)}\n" if len(texts) > 1 and not written and text else ""
            print(heading + text[written:], end="", flush=True)
            written = max(written, len(text))
            if not complete:
                break
            print("" if finished[place] else " [cut off: raise --max-new-tokens]", flush=True)
            place, written = place + 1, 0
    return texts


def answered_boxes(text: str, resized: Frame, original: Frame) -> np.ndarray:
    """The boxes with an area that a text names, moved from the frame that the model saw to the image's own.

    Returns:
        float64 `[n, 4]`; none where the text names no readable box.
    """
    from currreft_jax.rewards.answer import extract
    from currreft_jax.rewards.boxes import degenerate, read, rescale

    answer = extract(Completion(text))
    corners = read(text.strip() if answer is Reason.NO_ANSWER_TAG else answer if isinstance(answer, str) else "")
    if isinstance(corners, Reason):
        print(f"generate: no boxes to draw ({corners})", file=sys.stderr)
        return np.empty((0, 4))
    corners = corners[~degenerate(corners)]
    return rescale(Boxes(corners, resized), original).corners


def draw(image: Image.Image, boxes: np.ndarray, path: Path) -> None:
    """Writes the image with the boxes on it."""
    from currreft_jax.data.draw import draw_boxes

    corners = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes]
    draw_boxes(image, corners).save(path)
    print(f"wrote {path} with {len(corners)} box{'' if len(corners) == 1 else 'es'}", file=sys.stderr)


def _settings(options: argparse.Namespace) -> Sampling:
    temperature = options.temperature
    if temperature is None:
        temperature = 0.0 if options.samples == 1 and not options.top_k and options.top_p == 1 else 1.0
    settings = Sampling(
        group_size=options.samples,
        max_new_tokens=options.max_new_tokens,
        temperature=temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        ladder=(),
    )
    validate_sampling(settings)
    return settings


def _parser() -> argparse.ArgumentParser:
    defaults = Sampling()
    parser = argparse.ArgumentParser(
        prog="python -m currreft_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", metavar="SOURCE", help="hub id or folder (default: the model that comes with the package)")
    add("--image", metavar="FILE", action="append", default=[], help="may be given several times, before the question")
    add("--prompt", metavar="TEXT", help=f"the question (default, without --model: {CAPTIONS['boxes']!r})")
    add("--demo", action="store_true", help="ask about a drawn scene of coloured shapes")
    add("--replay", metavar="FILE:LINE:G", help="draw completion G of a line of a run's rollouts again, from 1 on")
    add("--samples", metavar="N", type=int, default=1, help="answers (default 1)")
    add("--boxes", metavar="OUT", type=Path, help="draw the boxes that the last answer names on the first image")
    add("--temperature", metavar="X", type=float, help="0 takes the likeliest text (default: 0 for one sample, else 1)")
    add("--top-k", metavar="K", type=int, default=defaults.top_k, help="draw among the K likeliest tokens")
    add("--top-p", metavar="P", type=float, default=defaults.top_p, help="draw among the likeliest of probability P")
    add(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=defaults.max_new_tokens,
        help=f"tokens of an answer at most (default {defaults.max_new_tokens})",
    )
    add("--seed", metavar="N", type=int, default=0, help="the same seed draws the same answers (default 0)")
    add("--max-pixels", metavar="N", type=int, help="shrink larger images to this area (default: the checkpoint's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
