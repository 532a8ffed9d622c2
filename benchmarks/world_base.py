"""How well does a model answer the world's questions? Accuracy and format of every kind, task and domain.

  python -m benchmarks.world_base --world runs/world-0 --model runs/world_base-0/questions/model --out table.json

Greedy and at temperature 1, one answer a row. The bounds of a base from which a curriculum can be learnt: judge at
least .65 and choice at least .40 in every task in domain, open between .15 and .80 greedy, and .60 to .90 of the
answers in the format that rewards ask for.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import currreft_jax as cr
from currreft_jax.config import Kind, Maths, Precision, Sampling, Task
from currreft_jax.data.examples import make_example
from currreft_jax.data.prompts import load_template
from currreft_jax.data.row_files import RowFile
from currreft_jax.rewards import MathsPool
from currreft_jax.rollout import decode_params
from currreft_jax.structs import Completion
from currreft_jax.world.scenes import AXES

BATCH = 125
BOUNDS = {Kind.JUDGE: (0.65, 1.0), Kind.CHOICE: (0.40, 1.0), Kind.OPEN: (0.15, 0.80)}
FORMAT = (0.6, 0.9)


def answers(model, params, processor, examples, temperature: float) -> list[Completion]:
    """One completion of every example."""
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
    said = []
    for start in range(0, len(examples), BATCH):
        prompts = [it.prompt for it in examples[start : start + BATCH]]
        rollout = cr.sample(model, params, processor, prompts, settings, weights=weights)
        tokens, lengths, finished = map(np.asarray, (rollout.tokens, rollout.lengths, rollout.finished))
        for row in range(len(prompts)):
            text = processor.decode(tokens[row, 0, : lengths[row, 0]])
            said.append(Completion(text, int(lengths[row, 0]), bool(finished[row, 0])))
    return said


def main() -> None:
    """Prints the table and writes it."""
    options = _parser().parse_args()
    processor = cr.load_processor(options.model)
    model, params = cr.load_model(options.model, mesh=cr.make_mesh(devices=jax.devices()[:1]), dtype="float32")
    wording = load_template("world")
    table = []
    domains = ["test", *(f"test_{axis}" for axis in AXES if options.axis_rows)]
    print(f"{'domain':<16}{'kind':<8}{'task':<11}{'rows':>6}{'greedy':>8}{'at 1':>8}{'format':>8}")
    with MathsPool(Maths()) as pool:
        for domain in domains:
            for kind in (Kind.JUDGE, Kind.CHOICE, Kind.OPEN):
                with RowFile(Path(options.world) / f"{domain}_{kind.value}.jsonl") as file:
                    rows = [file[index] for index in range(len(file))]
                for task in (Task.DETECTION, Task.CLASSIFY, Task.MATH):
                    most = options.rows if domain == "test" else options.axis_rows
                    asked = [row for row in rows if row.task is task][:most]
                    examples = [
                        make_example(row, processor, wording, location=row.id) for row in tqdm(asked, leave=False)
                    ]
                    cell = {"domain": domain, "kind": kind.value, "task": task.value, "rows": len(asked)}
                    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                        said = answers(model, params, processor, examples, temperature)
                        scores = cr.score_completions(
                            [it.row for it in examples],
                            [[it] for it in said],
                            frames=[it.frame for it in examples],
                            pool=pool,
                        )
                        cell[name] = float(scores.parts["accuracy"].mean())
                        cell[f"{name}_format"] = float(scores.parts["format"].mean())
                    table.append(cell)
                    print(line(cell), flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def line(cell: dict) -> str:
    """A cell as a line, with a mark where a bound is missed in domain."""
    low, high = BOUNDS[Kind(cell["kind"])]
    missed = not low <= cell["greedy"] <= high or not FORMAT[0] <= cell["sampled_format"] <= FORMAT[1]
    mark = "  missed" if missed and cell["domain"] == "test" else ""
    names = f"{cell['domain']:<16}{cell['kind']:<8}{cell['task']:<11}{cell['rows']:>6}"
    return f"{names}{cell['greedy']:>8.3f}{cell['sampled']:>8.3f}{cell['sampled_format']:>8.3f}{mark}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="runs/world-0", help="folder of `dataset build world` (default %(default)s)")
    parser.add_argument("--model", default="currreft_jax/world/base", help="(default %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="of a cell in domain (default %(default)s)")
    parser.add_argument("--axis-rows", type=int, default=200, help="of a cell out of domain; 0 leaves them out")
    parser.add_argument("--out", help="where the table goes, as JSON")
    return parser


if __name__ == "__main__":
    main()
