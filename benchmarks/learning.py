"""Measures the curriculum's gain in held-out reward over several seeds, with a control.

  python -m benchmarks.learning --seeds 1 2 3 4 5 --out learning.json
  python -m benchmarks.learning --seeds 1 2 3 4 5 --shuffled      # a control that must not gain

Trains `configs/curr_rl.py:tiny` once per seed and reads the forgetting matrices. Prints the gain in sampled reward
from the base model to the end of each stage, paired by seed, with the 95% interval of its mean (Student's t). With
--shuffled, every completion is trained on the reward of another one in the batch; the evaluation is unchanged.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from configs import curr_rl as recipe
from currreft_jax.config.output import output_path
from currreft_jax.runtime.workdir import MATRIX
from currreft_jax.training import grpo, trainer
from currreft_jax.training.curriculum import ForgettingMatrix
from currreft_jax.training.losses import group_advantages


def main() -> None:
    """Trains the seeds that have not been trained, and prints the table."""
    options = _parser().parse_args()
    if options.shuffled:
        grpo.group_advantages = shuffled_advantages
    gains = []
    for seed in options.seeds:
        workdir = options.runs / f"{'shuffled' if options.shuffled else 'learning'}-{seed}"
        config = recipe.get_config("tiny")
        config.seed = seed
        config.logging.tensorboard = False
        for stage in config.stages:
            stage.steps = options.steps or stage.steps
        config.optimizer.learning_rate = options.learning_rate or config.optimizer.learning_rate
        if trainer.run(config, workdir) is None:
            return
        matrix = ForgettingMatrix(workdir / MATRIX, writes=False)
        print(f"seed {seed}\n{matrix.table()}", flush=True)
        gains.append(reward_gains(matrix))
    print(format_gains(gains))
    if options.out:
        options.out.write_text(json.dumps({"seeds": options.seeds, "rises": gains}, indent=1) + "\n", "utf-8")


def reward_gains(matrix: ForgettingMatrix) -> dict[str, dict[str, float]]:
    """Returns, per held-out set, the base model's reward, and the gains by the end of its stage and of all stages."""
    gains: dict[str, dict[str, float]] = {}
    for base in (measured for measured in matrix.history if not measured.stage):
        same_rows = [measured for measured in matrix.history if measured.held_out == base.held_out]
        own_stage = [measured for measured in same_rows if measured.stage == base.held_out][-1]
        reward = own_stage.reward - base.reward
        format_gain = _or_nan(own_stage.format) - _or_nan(base.format)
        gains[base.held_out] = {
            "base": base.reward,
            "after its stage": reward,
            "after all": same_rows[-1].reward - base.reward,
            "greedy after its stage": _or_nan(own_stage.greedy) - _or_nan(base.greedy),
            "format after its stage": format_gain,
            "accuracy after its stage": reward - format_gain,
        }
    return gains


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def format_gains(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Formats the means over seeds with their intervals."""
    columns = [column for column in next(iter(seeds[0].values())) if column != "base"]
    lines = [f"{'held out':<10}{'base':>8}" + "".join(f"{column:>28}" for column in columns)]
    for name in seeds[0]:
        cells = [f"{np.mean([gains[name]['base'] for gains in seeds]):8.3f}"]
        for column in columns:
            values = np.array([gains[name][column] for gains in seeds])
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
            cells.append(f"{values.mean():+.3f} ± {half:.3f}".rjust(28))
        lines.append(f"{name:<10}" + "".join(cells))
    return "\n".join(lines)


def shuffled_advantages(rewards: np.ndarray, *settings: Any) -> np.ndarray:
    """Computes advantages of rewards that are permuted over all completions."""
    permuted = np.random.default_rng(int(rewards.sum() * 1000)).permutation(rewards.ravel()).reshape(rewards.shape)
    return group_advantages(permuted, *settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="(default %(default)s)")
    parser.add_argument("--shuffled", action="store_true", help="train the control")
    parser.add_argument("--steps", type=int, help="steps of each stage, instead of the config's")
    parser.add_argument("--learning-rate", type=float, help="instead of the config's")
    parser.add_argument(
        "--runs", type=output_path, default=Path("runs"), help="folder of the runs (default %(default)s)"
    )
    parser.add_argument("--out", type=output_path, help="write the gains to this JSON file")
    return parser


if __name__ == "__main__":
    main()
