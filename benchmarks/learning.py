"""Does the curriculum teach? Held-out reward before and after each stage, over several seeds, beside a control.

  python -m benchmarks.learning --seeds 1 2 3 4 5 --out learning.json
  python -m benchmarks.learning --seeds 1 2 3 4 5 --shuffled      # a control that must not rise

Trains `configs/curriculum.py:tiny` once for each seed and reads its forgetting matrices. Shown is the rise of the
sampled reward from the base to the end of each stage, paired by seed, with its mean's 95% interval (Student's t).
Shuffled, every completion learns from the reward of another one of the batch; what is measured stays what it is.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from configs import curriculum as recipe
from currreft_jax import experience, train
from currreft_jax.training.curriculum import Matrix
from currreft_jax.training.losses import group_advantages


def main() -> None:
    """Trains what is not there yet, and prints the table."""
    options = _parser().parse_args()
    if options.shuffled:
        experience.group_advantages = shuffled_advantages
    rises = []
    for seed in options.seeds:
        workdir = Path(options.runs) / f"{'shuffled' if options.shuffled else 'learning'}-{seed}"
        config = recipe.get_config("tiny")
        config.seed = seed
        config.logging.tensorboard = False
        for stage in config.stages:
            stage.steps = options.steps or stage.steps
        config.optimizer.learning_rate = options.learning_rate or config.optimizer.learning_rate
        if train.run(config, workdir) is None:
            return
        matrix = Matrix(workdir / train.MATRIX, writes=False)
        print(f"seed {seed}\n{matrix.table()}", flush=True)
        rises.append(rise(matrix))
    print(table(rises))
    if options.out:
        Path(options.out).write_text(json.dumps({"seeds": options.seeds, "rises": rises}, indent=1) + "\n", "utf-8")


def rise(matrix: Matrix) -> dict[str, dict[str, float]]:
    """For each stage's held-out rows the base's reward, and its rise by the end of that stage and of all stages."""
    seen = matrix.seen
    found: dict[str, dict[str, float]] = {}
    for base in (it for it in seen if not it.stage):
        of_stage = [it for it in seen if it.held_out == base.held_out and it.stage == base.held_out][-1]
        last = [it for it in seen if it.held_out == base.held_out][-1]
        reward, form = of_stage.reward - base.reward, _figure(of_stage.format) - _figure(base.format)
        found[base.held_out] = {
            "base": base.reward,
            "after its stage": reward,
            "after all": last.reward - base.reward,
            "greedy after its stage": _figure(of_stage.greedy) - _figure(base.greedy),
            "format after its stage": form,
            "accuracy after its stage": reward - form,
        }
    return found


def _figure(value: float | None) -> float:
    return float("nan") if value is None else value


def table(rises: list[dict[str, dict[str, float]]]) -> str:
    """Means over seeds with their intervals."""
    names = [name for name in next(iter(rises[0].values())) if name != "base"]
    lines = [f"{'held out':<10}{'base':>8}" + "".join(f"{name:>28}" for name in names)]
    for name, first in rises[0].items():
        cells = [f"{np.mean([it[name]['base'] for it in rises]):8.3f}"]
        for key in first:
            if key != "base":
                values = np.array([it[name][key] for it in rises])
                half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
                cells.append(f"{values.mean():+.3f} ± {half:.3f}".rjust(28))
        lines.append(f"{name:<10}" + "".join(cells))
    return "\n".join(lines)


def shuffled_advantages(rewards: np.ndarray, *settings: Any) -> np.ndarray:
    """Those of rewards that were dealt out anew among all completions."""
    dealt = np.random.default_rng(int(rewards.sum() * 1000)).permutation(rewards.ravel()).reshape(rewards.shape)
    return group_advantages(dealt, *settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="(default %(default)s)")
    parser.add_argument("--shuffled", action="store_true", help="the control")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the config's")
    parser.add_argument("--learning-rate", type=float, help="instead of the config's")
    parser.add_argument("--runs", default="runs", help="where the runs lie (default %(default)s)")
    parser.add_argument("--out", help="where the rises go, as JSON")
    return parser


if __name__ == "__main__":
    main()
