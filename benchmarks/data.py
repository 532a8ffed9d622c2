"""How many images a second the pipeline reads, and how many cores an accelerator host needs for it.

  python -m benchmarks.data [--model FOLDER] [--images FOLDER] [--threads 1,2,4] [--out data.json]

Photographs are decoded, resized to at most 401,408 pixels and cut into patches: by one thread alone, and by the Grain
pipeline with its threads, prompts included. Without --images they are drawn: JPEGs of COCO's usual 640 x 480, as
smooth as photographs are.
"""

import argparse
import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import currreft_jax as cr
from currreft_jax.config import Data, Kind, Source, Stage
from currreft_jax.data import pipeline
from currreft_jax.data.mixture import mixture
from currreft_jax.data.prompts import template
from currreft_jax.world import base

PIXELS = 401_408
RATES = (1, 4, 16)  # images a second that an accelerator takes: GRPO at 3B below the first, SFT between the last two
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    """Prints the table and writes it."""
    options = _parser().parse_args()
    processor = cr.load_processor(options.model or str(base.folder()), max_pixels=PIXELS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.images or draw(Path(scratch)))
        files = sorted(str(path.resolve()) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise SystemExit(f"{folder} holds no {', '.join(sorted(SUFFIXES))}")
        rows = Path(scratch) / "rows.jsonl"
        line = {"task": "math", "kind": "open", "problem": "How many cars are there?", "solution": "3"}
        rows.write_text("".join(json.dumps({"id": name, "image": name, **line}) + "\n" for name in files))
        alone = rate(lambda: sum(1 for name in files if processor.process_image(name, name)), options.seconds)
        found = {"images": len(files), "pixels": PIXELS, "cores": os.cpu_count(), "images_per_core_second": alone}
        print(f"{len(files)} images, at most {PIXELS:,} pixels, {os.cpu_count()} cores")
        print(f"one thread, no pipeline   {alone:7.1f} images/s")
        for threads in map(int, options.threads.split(",")):
            data = Data(batch_size=8, threads=threads)
            stage = Stage("rows", [Source(str(rows))], kinds=(Kind.OPEN,))
            shapes = pipeline.ladders(data, processor, data.batch_size)
            source = pipeline.Pipeline(
                mixture([stage], 0, data, 0), processor, template(data.template), data, shapes, seed=0, with_answer=True
            )
            batches = source.batches(0)
            next(batches)
            reached = rate(lambda batches=batches: sum(map(len, islice(batches, 4))), options.seconds)
            found[f"pipeline_{threads}_threads"] = reached
            print(f"pipeline, {threads:2} threads      {reached:7.1f} images/s")
        for wanted in RATES:
            cores = 8 * wanted / alone
            found[f"cores_for_8_accelerators_at_{wanted}"] = cores
            print(f"8 accelerators that take {wanted:2} images/s each need {cores:5.1f} cores")
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def rate(work, seconds: float) -> float:
    """How many a second `work` does, which says how many it did."""
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        done += work()
    return done / passed


def draw(folder: Path, count: int = 32) -> Path:
    """Smooth noise with the detail of a photograph: about 80 kB each as JPEG, as COCO's are 160."""
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1)).save(folder / f"{number}.jpg", quality=90)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="whose processor (default: the world's base; all read images alike)")
    parser.add_argument("--images", help="folder of photographs")
    parser.add_argument("--threads", default="1,2,4", help="of the pipeline (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement (default %(default)s)")
    parser.add_argument("--out", help="where the table goes, as JSON")
    return parser


if __name__ == "__main__":
    main()
