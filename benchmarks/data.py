"""Measures the images per second of the data pipeline, and the cores that an accelerator host needs for it.

  python -m benchmarks.data [--model FOLDER] [--images FOLDER] [--threads 1,2,4] [--out data.json]

Photographs are decoded, resized to the default `max_pixels` and cut into patches: by one thread, and by the Grain
pipeline with its threads, prompts included. Without --images they are generated: JPEGs of 640 x 480, COCO's usual size,
with the detail of photographs.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import currreft_jax as cr
from currreft_jax.config import Data, Kind, Pretrained, Source, Stage
from currreft_jax.config.output import output_path
from currreft_jax.data import pipeline
from currreft_jax.data.buckets import shape_buckets
from currreft_jax.data.examples import Example
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.processor import Processor
from currreft_jax.data.prompts import load_template
from currreft_jax.world import base

MAX_PIXELS = Pretrained().max_pixels
RATES = (1, 4, 16)  # images/s of an accelerator: GRPO at 3B takes less than the first, SFT between the last two
SUFFIXES = {".jpg", ".jpeg", ".png"}


def main() -> None:
    """Prints the table, and writes it to --out."""
    options = _parser().parse_args()
    processor = cr.load_processor(options.model or str(base.checkpoint()), max_pixels=MAX_PIXELS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.images or write_photographs(Path(scratch)))
        paths = sorted(str(path.resolve()) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise SystemExit(f"{folder} holds no {', '.join(sorted(SUFFIXES))}; --images takes a folder of photographs")
        one_thread = measure_rate(
            lambda: sum(1 for path in paths if processor.process_image(path, path)), options.seconds
        )
        results = {
            "images": len(paths),
            "pixels": MAX_PIXELS,
            "cores": os.cpu_count(),
            "images_per_core_second": one_thread,
        }
        print(f"{len(paths)} images, at most {MAX_PIXELS:,} pixels, {os.cpu_count()} cores")
        print(f"one thread, no pipeline   {one_thread:7.1f} images/s")
        rows = write_row_file(Path(scratch) / "rows.jsonl", paths)
        for threads in map(int, options.threads.split(",")):
            batches = load_batches(rows, processor, threads)
            next(batches)
            rate = measure_rate(lambda batches=batches: sum(map(len, islice(batches, 4))), options.seconds)
            results[f"pipeline_{threads}_threads"] = rate
            print(f"pipeline, {threads:2} threads      {rate:7.1f} images/s")
        for rate in RATES:
            cores = 8 * rate / one_thread
            results[f"cores_for_8_accelerators_at_{rate}"] = cores
            print(f"8 accelerators at {rate:2} images/s each need {cores:5.1f} cores")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def write_row_file(path: Path, images: Sequence[str]) -> Path:
    """Writes a file of rows, one for each image."""
    row = {"task": "math", "kind": "open", "problem": "How many cars are there?", "solution": "3"}
    path.write_text("".join(json.dumps({"id": image, "image": image, **row}) + "\n" for image in images), "utf-8")
    return path


def load_batches(rows: Path, processor: Processor, threads: int) -> Iterator[list[Example]]:
    """Returns the endless batches of the pipeline, with answers as for SFT."""
    data = Data(batch_size=8, threads=threads)
    stage = Stage("rows", [Source(str(rows))], kinds=(Kind.OPEN,))
    shapes = shape_buckets(data, processor, data.batch_size)
    source = pipeline.Pipeline(
        load_mixture([stage], 0, data, 0),
        processor,
        load_template(data.template),
        data,
        shapes,
        seed=0,
        with_answer=True,
    )
    return source.batches(0)


def measure_rate(work: Callable[[], int], seconds: float) -> float:
    """Repeats `work`, which returns how many items it processed, and returns the items per second."""
    processed, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not processed:
        processed += work()
    return processed / elapsed


def write_photographs(folder: Path, count: int = 32) -> Path:
    """Writes JPEGs of smooth noise; as detailed as a photograph, about 80 kB each where COCO's have 160."""
    rng = np.random.default_rng(0)
    for index in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1)).save(folder / f"{index}.jpg", quality=90)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the processor (default: the world's; all process images alike)")
    parser.add_argument("--images", help="folder of photographs")
    parser.add_argument("--threads", default="1,2,4", help="numbers of pipeline threads (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default %(default)s)")
    parser.add_argument("--out", type=output_path, help="JSON file for the table")
    return parser


if __name__ == "__main__":
    main()
