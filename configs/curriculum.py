"""Curr-ReFT: the curriculum of yes/no questions, choices and open answers, then fine-tuning on its own best answers.

python -m currreft_jax.train --config=configs/curriculum.py

Each stage starts from the end of the last one. Before the last, the model of stage 3 answers the rows of
`configs/reject.py`, and the judge there keeps the best answers to fine-tune on. If held-out rows of a stage fall while
that is done, the better checkpoint is the run's model.

The three stages of the variant :tiny take about ten minutes on two CPU cores; docs/results.md has their results. The
variants :3b and :7b need the rows that docs/reject.md lists, and a judge at a server; they have not been run yet.
`configs/curr_rl.py` ends after stage 3.

The learning rate is the paper's, 2e-5. The authors' scripts set none and so ran TRL's 1e-6, with a KL weight of 0.04
and 256 new tokens. `--config.optimizer.learning_rate=1e-6` sets their rate. The last stage has theirs, 2e-7, and their
2,000 steps, 42 passes over 1,520 rows: `--config.stages[3].steps=480` makes ten of them.
"""

from configs import common, reject
from currreft_jax.config import Config, EvaluatedModel

VARIANTS = common.VARIANTS


def get_config(variant: str | None = None) -> Config:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    config = common.grpo("curriculum", variant)
    self_improve = common.self_improve(variant)
    self_improve.rejection = reject.get_config(variant)
    self_improve.rejection.model = EvaluatedModel()  # that of stage 3
    config.stages = [*common.curriculum(variant), self_improve]
    return config
