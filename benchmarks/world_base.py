"""Measures accuracy (the share of right answers) and format on the world's questions, by domain, kind and task.

  python -m benchmarks.world_base --world runs/world-0 --model runs/world_base-0/answers/model --out table.json

Each row is answered three times: greedily, at temperature 1, and greedily after the opening of a careful answer. A base
fit for the curriculum knows more than it says: in domain, its greedy accuracy, a mean over tasks, is at least 12 points
below that of its careful answers on judge and choice rows, and 6 points on open rows. In every cell, .50 to .90 of its
answers at temperature 1 earn the format reward; on open rows its greedy accuracy is .10 to .70 in every task. The last
lines say which bounds are missed.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from currreft_jax.structs import Completion, Prompt
from currreft_jax.world.pretraining import CAREFUL_OPENING
from currreft_jax.world.questions import TASKS
from currreft_jax.world.scenes import AXES

BATCH = 125
KINDS = (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
# Kind -> least difference of mean accuracies, careful answers less greedy ones.
HEADROOM = {Kind.JUDGE: 0.12, Kind.CHOICE: 0.12, Kind.OPEN: 0.06}
OPEN_BOUNDS = (0.10, 0.70)
FORMAT_BOUNDS = (0.5, 0.9)
CAREFUL_PREFIX = f"<think> {CAREFUL_OPENING}"
# Column -> temperature and first words of the answers.
PASSES = {"greedy": (0.0, ""), "careful": (0.0, CAREFUL_PREFIX), "sampled": (1.0, "")}

Cell = dict[str, Any]


def main() -> None:
    """Prints the table and the missed bounds, and writes the table."""
    options = _parser().parse_args()
    processor = cr.load_processor(options.model)
    model, params = cr.load_model(options.model, mesh=cr.make_mesh(devices=jax.devices()[:1]), dtype="float32")
    domains = ["test", *(f"test_{axis}" for axis in AXES if options.axis_rows)]
    table = []
    print(f"{'domain':<16}{'kind':<8}{'task':<11}{'rows':>6}" + "".join(f"{name:>9}" for name in COLUMNS))
    with MathsPool(Maths()) as pool:
        for domain, kind in ((domain, kind) for domain in domains for kind in KINDS):
            with RowFile(Path(options.world) / f"{domain}_{kind.value}.jsonl") as file:
                rows = [file[index] for index in range(len(file))]
            for task in TASKS:
                limit = options.rows if domain == "test" else options.axis_rows
                task_rows = [row for row in rows if row.task is task][:limit]
                cell = {"domain": domain, "kind": kind.value, "task": task.value, "rows": len(task_rows)}
                cell |= measure(model, params, processor, task_rows, pool)
                table.append(cell)
                print(format_cell(cell), flush=True)
    for domain in domains:
        print("\n".join(format_means(table, domain)))
    print("\n".join(missed_bounds(table)) or "no bound is missed")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


def measure(model, params, processor, rows, pool: MathsPool) -> Cell:
    """Returns shares of answers: right ones and formatted ones of each pass, careful ones at temperature 1."""
    world_template = load_template("world")
    examples = [make_example(row, processor, world_template, location=row.id) for row in tqdm(rows, leave=False)]
    means = {}
    for name, (temperature, prefix) in PASSES.items():
        prompts = [with_prefix(item.prompt, processor.encode(prefix)) for item in examples]
        completions = complete(model, params, processor, prompts, temperature)
        completions = [replace(completion, text=prefix + completion.text) for completion in completions]
        scores = cr.score_completions(
            [item.row for item in examples],
            [[completion] for completion in completions],
            frames=[item.frame for item in examples],
            pool=pool,
        )
        means[name] = float((scores.parts["accuracy"] == 1).mean())
        means[f"{name}_format"] = float(scores.parts["format"].mean())
        if name == "sampled":
            careful = [completion.text.startswith(CAREFUL_PREFIX) for completion in completions]
            means["sampled_careful"] = float(np.mean(careful))
    return means


def with_prefix(prompt: Prompt, tokens: np.ndarray) -> Prompt:
    """Returns the prompt with the first tokens of its answer."""
    count = len(tokens)
    positions = np.tile(np.arange(count, dtype=np.int32) + prompt.next_position, (3, 1))
    return replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, np.asarray(tokens, np.int32)]),
        positions=np.concatenate([prompt.positions, positions], axis=1),
        next_position=prompt.next_position + count,
    )


def complete(model, params, processor, prompts, temperature: float) -> list[Completion]:
    """Returns one completion of every prompt."""
    settings = Sampling(
        group_size=1,
        max_new_tokens=48,
        segment=48,
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


# Heading -> value of a cell.
COLUMNS = {
    "greedy": "greedy",
    "careful": "careful",
    "at 1": "sampled",
    "format": "sampled_format",
    "thinks": "sampled_careful",
}


def missed_bounds(table: Sequence[Cell]) -> list[str]:
    """Returns a line for each bound that the cells in domain miss."""
    lines = []
    for kind, least in HEADROOM.items():
        means = kind_means(table, "test", kind)
        difference = means["careful"] - means["greedy"]
        if difference < least:
            lines.append(f"missed: {kind.value}, careful less greedy {difference:.3f}, at least {least:.2f}")
    for cell in table:
        if cell["domain"] != "test":
            continue
        bounds = [("sampled_format", "format at 1", FORMAT_BOUNDS)]
        bounds += [("greedy", "greedy accuracy", OPEN_BOUNDS)] if cell["kind"] == Kind.OPEN.value else []
        for key, name, (low, high) in bounds:
            if not low <= cell[key] <= high:
                lines.append(f"missed: {cell['kind']} {cell['task']}, {name} {cell[key]:.3f}, {low:.2f} to {high:.2f}")
    return lines


def kind_means(table: Sequence[Cell], domain: str, kind: Kind) -> dict[str, float]:
    """Returns the means over tasks of a domain's cells of one kind, by column."""
    cells = [cell for cell in table if (cell["domain"], cell["kind"]) == (domain, kind.value)]
    return {key: float(np.mean([cell[key] for cell in cells])) for key in COLUMNS.values()}


def format_means(table: Sequence[Cell], domain: str) -> list[str]:
    """Formats the means over tasks of a domain, a line for each kind."""
    return [
        f"{domain:<16}{kind.value:<8}{'mean':<17}" + _format_values(kind_means(table, domain, kind)) for kind in KINDS
    ]


def format_cell(cell: Cell) -> str:
    """Formats a cell as a line."""
    return f"{cell['domain']:<16}{cell['kind']:<8}{cell['task']:<11}{cell['rows']:>6}" + _format_values(cell)


def _format_values(values: Mapping[str, Any]) -> str:
    return "".join(f"{values[key]:>9.3f}" for key in COLUMNS.values())


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
