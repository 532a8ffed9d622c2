"""Measures accuracy and format of a model on the world's questions, by domain, kind and task.

  python -m benchmarks.world_base --world runs/world-0 --model runs/world_base-0/questions/model --out table.json

Each row is answered once greedily and once at temperature 1. A base fit for the curriculum has, in domain and in
every task, a greedy accuracy of at least .65 on judge rows, at least .40 on choice rows and .15 to .80 on open rows;
.60 to .90 of its answers at temperature 1 earn the format reward.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import currreft_jax as cr
from currreft_jax.config import Kind, Maths, Precision, Sampling
from currreft_jax.config.output import output_path
from currreft_jax.data.examples import make_example
from currreft_jax.data.prompts import load_template
from currreft_jax.data.row_files import RowFile
from currreft_jax.rewards import MathsPool
from currreft_jax.sampling.sampler import decode_params
from currreft_jax.structs import Completion
from currreft_jax.world.questions import TASKS
from currreft_jax.world.scenes import AXES

BATCH = 125
BOUNDS = {Kind.JUDGE: (0.65, 1.0), Kind.CHOICE: (0.40, 1.0), Kind.OPEN: (0.15, 0.80)}
FORMAT_BOUNDS = (0.6, 0.9)
TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}


def main() -> None:
    """Prints the table and writes it."""
    options = _parser().parse_args()
    processor = cr.load_processor(options.model)
    model, params = cr.load_model(options.model, mesh=cr.make_mesh(devices=jax.devices()[:1]), dtype="float32")
    domains = ["test", *(f"test_{axis}" for axis in AXES if options.axis_rows)]
    table = []
    print(f"{'domain':<16}{'kind':<8}{'task':<11}{'rows':>6}{'greedy':>8}{'at 1':>8}{'format':>8}")
    with MathsPool(Maths()) as pool:
        for domain, kind in ((domain, kind) for domain in domains for kind in BOUNDS):
            with RowFile(Path(options.world) / f"{domain}_{kind.value}.jsonl") as file:
                rows = [file[index] for index in range(len(file))]
            for task in TASKS:
                limit = options.rows if domain == "test" else options.axis_rows
                task_rows = [row for row in rows if row.task is task][:limit]
                cell = {"domain": domain, "kind": kind.value, "task": task.value, "rows": len(task_rows)}
                cell |= measure(model, params, processor, task_rows, pool)
                table.append(cell)
                print(format_cell(cell), flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def measure(model, params, processor, rows, pool: MathsPool) -> dict[str, float]:
    """Returns mean accuracy and format of the rows, greedy and at temperature 1."""
    world_template = load_template("world")
    examples = [make_example(row, processor, world_template, location=row.id) for row in tqdm(rows, leave=False)]
    prompts = [item.prompt for item in examples]
    means = {}
    for name, temperature in TEMPERATURES.items():
        completions = complete(model, params, processor, prompts, temperature)
        scores = cr.score_completions(
            [item.row for item in examples],
            [[completion] for completion in completions],
            frames=[item.frame for item in examples],
            pool=pool,
        )
        means[name] = float(scores.parts["accuracy"].mean())
        means[f"{name}_format"] = float(scores.parts["format"].mean())
    return means


def complete(model, params, processor, prompts, temperature: float) -> list[Completion]:
    """Returns one completion of every prompt."""
    settings = Sampling(
        group_size=1,
        max_new_tokens=32,
        segment=32,
        temperature=temperature,
        precision=Precision.FLOAT32,
        ladder=(),
        prompt_lengths=(32, 48, 80, 128),
    )
    weights = decode_params(model, params, settings)
    completions = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        rollout = cr.sample(model, params, processor, batch, settings, weights=weights)
        tokens, lengths, finished = map(np.asarray, (rollout.tokens, rollout.lengths, rollout.finished))
        for p in range(len(batch)):
            text = processor.decode(tokens[p, 0, : lengths[p, 0]])
            completions.append(Completion(text, int(lengths[p, 0]), bool(finished[p, 0])))
    return completions


def format_cell(cell: dict[str, Any]) -> str:
    """Formats a cell as a line, marked if it misses a bound in domain."""
    low, high = BOUNDS[Kind(cell["kind"])]
    missed = not low <= cell["greedy"] <= high or not FORMAT_BOUNDS[0] <= cell["sampled_format"] <= FORMAT_BOUNDS[1]
    mark = "  missed" if missed and cell["domain"] == "test" else ""
    names = f"{cell['domain']:<16}{cell['kind']:<8}{cell['task']:<11}{cell['rows']:>6}"
    return f"{names}{cell['greedy']:>8.3f}{cell['sampled']:>8.3f}{cell['sampled_format']:>8.3f}{mark}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="runs/world-0", help="folder of `dataset build world` (default %(default)s)")
    parser.add_argument("--model", default="currreft_jax/world/base", help="checkpoint (default %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a cell in domain (default %(default)s)")
    parser.add_argument("--axis-rows", type=int, default=200, help="rows of a cell out of domain; 0 leaves these out")
    parser.add_argument("--out", type=output_path, help="file for the table, as JSON")
    return parser


if __name__ == "__main__":
    main()
