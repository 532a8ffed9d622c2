"""Draws gauges and writes the rows that ask for their readings.

python examples/gauge/make_rows.py --out rows/gauge
"""

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, CENTRE, RADIUS = 84, 42, 38  # pixels; 84 is three of the model's 28-pixel units
HIGHEST = 10  # reading at the end of the scale


def draw_gauge(reading: float, ticks: int, paper: tuple[int, ...]) -> Image.Image:
    """Draws a dial of 270 degrees, whose scale runs clockwise from 0 at the lower left."""
    image = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    draw.ellipse([CENTRE - RADIUS, CENTRE - RADIUS, CENTRE + RADIUS, CENTRE + RADIUS], outline="black", width=2)

    def point(value: float, radius: float) -> tuple[float, float]:
        angle = math.radians(135 + 270 * value / HIGHEST)
        return CENTRE + radius * math.cos(angle), CENTRE + radius * math.sin(angle)

    for tick in range(ticks):
        value = HIGHEST * tick / (ticks - 1)
        draw.line([point(value, RADIUS - 7), point(value, RADIUS - 2)], "black", 2)
    draw.line([(CENTRE, CENTRE), point(reading, RADIUS - 9)], "red", 4)
    return image


def write_rows(folder: Path, name: str, count: int, rng: random.Random) -> None:
    """Writes `name.jsonl`, and the images that it names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            reading, ticks, image = (
                round(rng.uniform(0, HIGHEST), 1),
                rng.choice([6, 11]),
                f"images/{name}-{number}.png",
            )
            paper = tuple(rng.randint(200, 255) for _ in "rgb")  # no two images are alike
            draw_gauge(reading, ticks, paper).save(folder / image)
            row = {
                "id": f"{name}-{number}",
                "task": "other",
                "kind": "open",
                "problem": "what number is it?",
                "solution": str(reading),
                "image": image,
                "tolerance": HIGHEST / (ticks - 1),  # a tick; no key of the schema: the reward finds it in row.extra
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description="Draws gauges and writes the rows that ask for their readings.")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and images")
    parser.add_argument("--train", type=int, default=512, help="training rows (default %(default)s)")
    parser.add_argument("--test", type=int, default=64, help="held-out rows (default %(default)s)")
    options = parser.parse_args()
    for name, count in (("train", options.train), ("test", options.test)):
        write_rows(options.out, name, count, random.Random(name))
    print(f"{options.train} + {options.test} rows in {options.out}")


if __name__ == "__main__":
    main()
