"""Measures the throughput of the rewards on one core, in verdicts per second.

  python benchmarks/rewards.py [--seconds 2] [--out rewards.json]

A verdict is one completion scored for accuracy and format. Answers of `math exact` are compared without
math-verify, those of `math parsed` by one math-verify worker; all different.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable

from currreft_jax.config import Kind, Maths, Rewards, Task
from currreft_jax.config.output import output_path
from currreft_jax.rewards import MathsPool, score_completions
from currreft_jax.structs import Completion, Frame, Row

G = 8
P = 64
_THOUGHTS = "<think>" + "the box on the left is a little larger than the other one " * 8 + "</think>\n"


def _row_batch(kind: Kind, task: Task, solution: str, answers: list[str], **keys) -> Callable[[MathsPool], int]:
    rows = [Row(f"{p}", task, kind, "", solution, **keys) for p in range(P)]
    texts = [f"{_THOUGHTS}<answer>{answer}</answer>" for answer in answers]
    completions = [[Completion(texts[(p + g) % len(texts)]) for g in range(G)] for p in range(P)]
    frames = [Frame(616, 476) if row.frame else None for row in rows]
    settings = Rewards()

    def score(pool: MathsPool) -> int:
        score_completions(rows, completions, settings, frames=frames, pool=pool)
        return P * G

    return score


def _math_verify_batch() -> Callable[[MathsPool], int]:
    row = Row("r", Task.MATH, Kind.OPEN, "", r"2\sqrt{3}")
    completions = [Completion(rf"<answer>\sqrt{{{n}}}</answer>") for n in range(8, 16)]

    def score(pool: MathsPool) -> int:
        score_completions([row], [completions], pool=pool)
        return len(completions)

    return score


BATCHES = {
    "judge": _row_batch(Kind.JUDGE, Task.DETECTION, "yes", ["yes", "No.", "yes", "maybe"]),
    "choice": _row_batch(
        Kind.CHOICE, Task.CLASSIFY, "A, C", ["A, C", "A", "B", "(C) (A)"], options=("a", "b", "c", "d"), multiple=True
    ),
    "classify": _row_batch(
        Kind.OPEN, Task.CLASSIFY, "dog, dining table", ["dog, cat", '["dining table", "dog"]', "bus"]
    ),
    "detection, one box": _row_batch(
        Kind.OPEN,
        Task.DETECTION,
        "[10.5, 20, 300, 400]",
        ["[10, 20, 290, 395]", '```json\n[{"bbox_2d": [10, 20, 290, 395], "label": "dog"}]\n```', "[1, 2]"],
        frame=Frame(640, 480),
    ),
    "detection, three boxes": _row_batch(
        Kind.OPEN,
        Task.DETECTION,
        "[[10, 20, 300, 400], [300, 20, 400, 90], [500, 20, 600, 90]]",
        ["[[10, 20, 290, 395], [290, 20, 390, 90], [480, 20, 580, 90]]", "[[1, 2, 30, 40], [10, 20, 290, 395]]"],
        frame=Frame(640, 480),
    ),
    "math exact": _row_batch(
        Kind.OPEN, Task.MATH, r"\frac{3}{4}", ["0.75", "3/4", "0.7", "B", "12 cm", "the result is $6/8$", "75\\%"]
    ),
    "math parsed": _math_verify_batch(),
}


def main() -> None:
    """Prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of each measurement (default %(default)s)")
    parser.add_argument("--out", type=output_path, help="file for the table, as JSON")
    options = parser.parse_args()
    rates = {}
    with MathsPool(Maths(workers=1)) as pool:
        for name, score in BATCHES.items():
            score(pool)
            verdicts, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < options.seconds:
                verdicts += score(pool)
            rates[name] = verdicts / elapsed
            print(f"{name:<24}{rates[name]:>12,.0f} verdicts/s", flush=True)
    others = [rate for name, rate in rates.items() if not name.startswith("math")]
    rates["all but math"] = len(others) / sum(1 / rate for rate in others)
    print(f"{'all but math':<24}{rates['all but math']:>12,.0f} verdicts/s")
    if options.out:
        record = {"python": platform.python_version(), "machine": platform.machine(), "verdicts_per_second": rates}
        options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
