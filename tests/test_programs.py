"""The programs of a run: few, the same in all stages, and compiled before its first step."""

from dataclasses import replace

import pytest

from currreft_jax.config import Config, Grpo, Method, Optimizer, Sampling, Stage
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.update import UpdatePrograms, gradient_function, update_programs
from tests import tiny


def programs_of(config: Config, stage_index: int) -> UpdatePrograms:
    optimizer = stage_optimizer(config, stage_index)
    return update_programs(tiny.model_of(), optimizer.transform, optimizer.settings, gradient_function(config))


@pytest.mark.parametrize("method", Method)
def test_all_stages_have_the_same_gradient_program(method):
    stages = [Stage("one", steps=3), Stage("two", steps=5), Stage("three", steps=2, learning_rate=0.5)]
    config = Config(method=method, stages=stages)
    one, two, three = (programs_of(config, stage_index) for stage_index in range(3))
    assert one.add_gradient is two.add_gradient is three.add_gradient
    assert one.zero_gradient is two.zero_gradient is three.zero_gradient
    assert one.apply_gradients is not two.apply_gradients  # the schedules differ
    changes = [{"optimizer": Optimizer(freeze_vision=True)}]
    if method is Method.GRPO:
        changes += [{"grpo": Grpo(kl_coef=0.5)}, {"sampling": Sampling(temperature=0.5)}]
    for change in changes:
        assert programs_of(replace(config, **change), 0).add_gradient is not one.add_gradient, change
