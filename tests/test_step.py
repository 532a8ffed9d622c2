"""The optimizer by hand, its sharding, and gradients of microbatches."""

from dataclasses import replace
from functools import partial

import jax
import jax._src.test_util as jtu
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from currreft_jax.config import Config, Grpo, LossAverage, Method, Optimizer, Rule, Schedule, Stage
from currreft_jax.data.processor import load as load_processor
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.sharding import data_shards, make_mesh, path_of
from currreft_jax.session.sources import to_policy
from currreft_jax.structs import GroupBatch, GrpoTargets, Prompt
from currreft_jax.training.gradients import grpo_gradient, sft_gradient
from currreft_jax.training.losses import loss_counts, loss_weights
from currreft_jax.training.optimizer import (
    is_trainable,
    learning_rate_schedule,
    make_optimizer,
    restart_schedule,
    stage_optimizer,
    trainable_params,
)
from currreft_jax.training.update import TrainState, abstract_state, apply_gradients, init_state
from tests import tiny
from tests.groups import batch_of
from tests.marks import quick
from tests.updates import make_update


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (Optimizer(learning_rate=1.0, schedule=Schedule.CONSTANT, warmup=0.5), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Optimizer(learning_rate=1.0, schedule=Schedule.LINEAR), [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (
            Optimizer(learning_rate=2.0, schedule=Schedule.COSINE, warmup=0.25),
            [1, 2, *(1 + np.cos(np.pi * np.arange(6) / 6))],
        ),
    ],
)
def test_learning_rates_by_hand(settings, rates):
    schedule = learning_rate_schedule(settings, 8)
    np.testing.assert_allclose([schedule(step) for step in range(8)], rates, rtol=1e-6)


def test_frozen_parameters_have_no_update_no_moments_and_no_share_of_the_norm():
    model = tiny.model_of()
    params = tiny.parameters_of(model)
    settings = Optimizer(learning_rate=0.1, schedule=Schedule.CONSTANT, freeze_vision=True, max_grad_norm=1e9)
    trainable = {
        path_of(path): label for path, label in jax.tree_util.tree_leaves_with_path(is_trainable(settings, params))
    }
    assert {name for name in trainable if name.startswith("visual/") and trainable[name]} == {
        name for name in trainable if name.startswith("visual/merger/")
    }
    optimizer = make_optimizer(settings, 10)
    state = init_state(model, optimizer, params)
    moments = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.optimizer)]
    assert not any("visual/blocks" in name for name in moments)
    before = jax.tree.map(np.asarray, params)
    ones = jax.tree.map(jnp.ones_like, trainable_params(settings, params))
    after, norm = jax.jit(partial(apply_gradients, optimizer))(state, ones)
    num_trainable = sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(params) if trainable[path_of(path)])
    assert float(norm) == pytest.approx(num_trainable**0.5, rel=1e-5)
    for path, old in jax.tree_util.tree_leaves_with_path(before):
        new = after.params
        for key in path:
            new = new[key.key]
        change = np.asarray(new) - old
        if not trainable[path_of(path)]:
            assert not change.any()
        else:  # the first update of Adam is the learning rate
            np.testing.assert_allclose(change, -0.1, rtol=1e-3)


@pytest.mark.parametrize(("vision", "merger"), [(False, True), (True, True)])
def test_the_merger_is_frozen_alone_or_with_its_tower(vision, merger):
    params = tiny.model_of().abstract(jnp.float32)
    named = is_trainable(Optimizer(freeze_vision=vision, freeze_merger=merger), params)
    frozen = {path_of(path) for path, trainable in jax.tree_util.tree_leaves_with_path(named) if not trainable}
    names = {path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert frozen == {name for name in names if name.startswith("visual/" if vision else "visual/merger/")} != set()


def first_update(settings: Optimizer, weight: float, slope: float, size: int = 3) -> np.ndarray:
    params, gradient = ({"down_proj": {"kernel": jnp.full(size, value)}} for value in (weight, slope))
    optimizer = make_optimizer(replace(settings, schedule=Schedule.CONSTANT), 10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return np.asarray(updates["down_proj"]["kernel"])


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("rate", [0.1, 1e-6])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_weights_decay_by_the_learning_rate(rule, rate, decay):
    settings = Optimizer(rule=rule, learning_rate=rate, weight_decay=decay, max_grad_norm=1e9)
    np.testing.assert_allclose(first_update(settings, weight=2.0, slope=1.0), -rate * (1 + decay * 2), rtol=1e-5)


@pytest.mark.parametrize("rule", Rule)
def test_biases_and_norms_do_not_decay(rule):
    settings = Optimizer(rule=rule, learning_rate=0.1, weight_decay=0.5, schedule=Schedule.CONSTANT)
    params = tiny.parameters_of(tiny.model_of(tiny.UNTIED))
    optimizer = make_optimizer(settings, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda params: optimizer.update(zeros, optimizer.init(params), params)[0])(params)
    kinds = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        weight = params
        for key in path:
            weight = weight[key.key]
        kinds.add(path[-1].key)
        decay = 0.0 if path[-1].key in ("bias", "scale") else 0.5
        np.testing.assert_allclose(update, -0.1 * decay * weight, rtol=1e-5, err_msg=path_of(path))
    assert kinds == {"kernel", "embedding", "bias", "scale"}


def test_the_state_of_adamw_is_that_of_optax():
    """Checkpoints hold it: its structure must not follow from how the decay is masked."""
    params = {"mlp": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate_schedule(Optimizer(), 4)))
    found = make_optimizer(Optimizer(weight_decay=0.1), 4).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(plain.init(params))


def test_adafactor_decays_by_the_scheduled_rate():
    params = {"down_proj": {"kernel": jnp.full(3, 2.0)}}
    optimizer = make_optimizer(
        Optimizer(rule=Rule.ADAFACTOR, learning_rate=0.1, weight_decay=0.01, schedule=Schedule.LINEAR), 4
    )
    moments = optimizer.init(params)
    for rate in (0.1, 0.075, 0.05, 0.025):
        updates, moments = optimizer.update(jax.tree.map(jnp.zeros_like, params), moments, params)
        np.testing.assert_allclose(updates["down_proj"]["kernel"], -rate * 0.01 * 2, rtol=1e-5)


def test_gradients_are_clipped_to_the_maximum_norm():
    # With eps = 1 the first update of Adam is g / (g + 1); 400 equal values of norm 1 are 1 / 20 each.
    settings = Optimizer(learning_rate=1.0, eps=1.0, max_grad_norm=1.0)
    np.testing.assert_allclose(first_update(settings, weight=2.0, slope=1e3, size=400), -1 / 21, rtol=1e-5)
    np.testing.assert_allclose(first_update(settings, weight=2.0, slope=0.01, size=400), -0.01 / 1.01, rtol=1e-5)


def test_the_schedule_ends_with_the_last_update_of_the_last_step():
    config = Config(
        method=Method.GRPO,
        stages=[Stage("one", [], steps=2)],
        optimizer=Optimizer(learning_rate=1e-2, schedule=Schedule.LINEAR),
        grpo=Grpo(num_updates=2, minibatches=2),
    )
    _, optimizer, rates, updates_per_step = stage_optimizer(config, 0)
    params = {"norm": {"scale": jnp.ones(3)}}
    moments, sizes = optimizer.init(params), []
    for _ in range(2 * updates_per_step):
        updates, moments = optimizer.update(params, moments, params)
        sizes.append(-float(updates["norm"]["scale"][0]))
    wanted = 1e-2 * (1 - np.arange(8) / 8)
    np.testing.assert_allclose(sizes, wanted, rtol=1e-4)  # with a constant gradient, Adam's update is the rate
    np.testing.assert_allclose([rates(update) for update in range(8)], wanted, rtol=1e-6)


def test_a_supervised_step_is_one_update_at_the_learning_rate_of_its_stage():
    config = Config(
        method=Method.SFT,
        stages=[Stage("one", [], steps=9), Stage("two", [], steps=4, learning_rate=0.5)],
        optimizer=Optimizer(learning_rate=1e-2, schedule=Schedule.LINEAR),
        grpo=Grpo(num_updates=2, minibatches=2),
    )
    _, _, rates, updates_per_step = stage_optimizer(config, 1)
    assert updates_per_step == 1
    np.testing.assert_allclose([rates(step) for step in range(4)], [0.5, 0.375, 0.25, 0.125], rtol=1e-6)


@pytest.mark.slow
def test_moments_are_sharded_as_their_parameters_and_updates_compile_once(checkpoint):
    model = tiny.model_of(mesh=make_mesh(data=2, fsdp=4))
    settings = Optimizer(learning_rate=1e-3)
    optimizer = make_optimizer(settings, 10)
    state = init_state(model, optimizer, model.init(0))
    wanted = abstract_state(model, optimizer)
    jax.tree.map(
        lambda x, y: (_ for _ in ()).throw(AssertionError(x)) if x.sharding != y.sharding else None, state, wanted
    )
    kernels = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(state.optimizer)
        if path_of(path).endswith("mu/layers/mlp/up_proj/kernel")
    ]
    assert len(kernels) == 1 and "fsdp" in str(kernels[0].sharding.spec)
    update = make_update(model, optimizer, settings, sft_gradient)
    prompts = [load_processor(checkpoint).prompt(tiny.user("?")) for _ in range(8)]
    tokens, mask = np.zeros((8, 1, 3), np.int32), np.ones((8, 1, 3), bool)
    weights = loss_weights(mask, LossAverage.TOKEN, loss_counts([mask]))
    batch = to_devices((GroupBatch(batch_of(prompts, model.config, shards=8), tokens), weights), model.mesh)
    old = state
    for _ in range(3):
        with jtu.count_jit_compilation_cache_miss() as compiled:
            state, metrics = update(state, [[batch, batch]])
    assert compiled() == 0
    assert metrics.keys() == {"loss", "grad_norm"}
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params))


def groups(checkpoint, count: int = 4, images: bool = True) -> tuple[GroupBatch, np.ndarray]:
    processor = load_processor(checkpoint)
    prompts = [
        processor.prompt(tiny.user(f"what is {n}?", shown), [tiny.picture(60 + 28 * n, 60, n)] * shown)
        for n, shown in enumerate([0, int(images)] * (count // 2))
    ]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (count, 1, 7)).astype(np.int32)
    mask = np.arange(7) < rng.integers(2, 8, (count, 1, 1))
    return GroupBatch(batch_of(prompts, processor.config), tokens), mask


def rows_of(batch: GroupBatch, rows: slice) -> GroupBatch:
    prompts = batch.prompts
    fields = ("tokens", "lengths", "positions", "next_position", "key", "embed_index")
    prompts = replace(prompts, **{name: getattr(prompts, name)[rows] for name in fields})
    return GroupBatch(prompts, batch.tokens[rows])


@pytest.mark.parametrize(
    ("average", "method"),
    quick([(LossAverage.SEQUENCE, Method.GRPO), (LossAverage.TOKEN, Method.SFT), (LossAverage.SEQUENCE, Method.SFT)]),
)
def test_gradients_of_microbatches_sum_to_that_of_the_batch(checkpoint, average, method):
    model = tiny.model_of()
    params = tiny.parameters_of(model)
    batch, mask = groups(checkpoint, images=method is Method.SFT)
    weights = loss_weights(mask, average, loss_counts([mask]))
    grpo = partial(grpo_gradient, settings=Grpo(num_updates=2), temperature=0.7)
    gradient = jax.jit(partial(sft_gradient if method is Method.SFT else grpo, model))
    rng = np.random.default_rng(1)
    logprobs = (-5 + rng.standard_normal((2, *mask.shape))).astype(np.float32)
    advantages = np.float32([[1.0], [-2.0], [0.5], [0.5]])

    def targets(rows: slice) -> tuple[GrpoTargets, ...]:
        return () if method is Method.SFT else (GrpoTargets(advantages[rows], *logprobs[:, rows]),)

    zeros = jax.tree.map(jnp.zeros_like, params)
    expected, metrics = gradient(params, zeros, batch, weights, *targets(slice(None)))
    total, loss = zeros, 0.0
    for start in (0, 2):
        rows = slice(start, start + 2)
        total, share = gradient(params, total, rows_of(batch, rows), weights[rows], *targets(rows))
        loss += float(share["loss"])
    assert loss == pytest.approx(float(metrics["loss"]), rel=1e-6)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale), expected, total)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "share"),
    [
        (Optimizer(moments="bfloat16"), 0.75),
        (Optimizer(rule=Rule.ADAFACTOR), 0.5),
    ],
)
def test_smaller_optimizer_states_still_reduce_the_loss(checkpoint, settings, share):
    model = tiny.model_of(mesh=make_mesh(data=2, fsdp=4))
    settings = replace(settings, learning_rate=3e-3, schedule=Schedule.CONSTANT)
    optimizer = make_optimizer(settings, 10)
    state = init_state(model, optimizer, model.init(0))
    size = sum(x.nbytes for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert size <= share * 2 * sum(x.nbytes for x in jax.tree.leaves(state.params))
    update = make_update(model, optimizer, settings, sft_gradient)
    prompts = [load_processor(checkpoint).prompt(tiny.user("?")) for _ in range(8)]
    tokens, mask = np.full((8, 1, 3), 7, np.int32), np.ones((8, 1, 3), bool)
    weights = loss_weights(mask, LossAverage.TOKEN, loss_counts([mask]))
    batch = to_devices((GroupBatch(batch_of(prompts, model.config, shards=8), tokens), weights), model.mesh)
    losses = []
    for _ in range(4):
        state, metrics = update(state, [[batch]])
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_state_is_one_pytree():
    state = TrainState({"a": jnp.ones(2)}, {"m": jnp.ones(2)})
    assert len(jax.tree.leaves(state)) == 2


def test_a_batch_on_a_mesh_has_the_gradient_of_one_device(checkpoint):
    """On one mesh; `test_model.test_every_mesh_gives_the_same_logprobs_and_gradients` has all kinds."""
    processor = load_processor(checkpoint)
    prompts = [processor.prompt(tiny.user(f"what is {n}?", 1), [tiny.picture(60, 60, n)]) for n in range(8)]
    tokens = np.random.default_rng(0).integers(0, 256, (8, 1, 5)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    weights = loss_weights(mask, LossAverage.TOKEN, loss_counts([mask]))
    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
        model = tiny.model_of(mesh=mesh)
        batch = GroupBatch(batch_of(prompts, processor.config, shards=data_shards(mesh)), tokens)
        params = model.init(0)
        zeros = jax.tree.map(jnp.zeros_like, params)
        total, metrics = jax.jit(partial(sft_gradient, model))(params, zeros, *to_devices((batch, weights), mesh))
        found.append((float(metrics["loss"]), jax.tree.map(np.asarray, total)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max()), found[0][1], found[1][1]
    )


SHALLOW = replace(
    tiny.CONFIG,
    num_hidden_layers=1,
    max_window_layers=1,
    vision=replace(tiny.CONFIG.vision, depth=2, fullatt_block_indexes=(1,)),
)


@pytest.mark.slow
def test_bf16_training_rounds_parameters_as_the_sampler_does_and_no_gradient(checkpoint):
    """Masters give the gradient of the bf16 copy that completions are sampled from, in fp32."""
    model = tiny.model_of(replace(SHALLOW, tie_word_embeddings=False), dtype=jnp.dtype("bfloat16"))
    params = tiny.parameters_of(model)
    policy = jax.tree.map(lambda x: x.astype(jnp.float32), to_policy(model)(params))
    batch, mask = groups(checkpoint, count=2)
    gradient = jax.jit(partial(sft_gradient, model))
    zeros, weights = jax.tree.map(jnp.zeros_like, params), loss_weights(mask, LossAverage.TOKEN, loss_counts([mask]))
    found, _ = gradient(params, zeros, batch, weights)
    for (path, leaf), of_policy in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(gradient(policy, zeros, batch, weights)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, of_policy, err_msg=path_of(path))
        has_more_bits = leaf != leaf.astype(jnp.bfloat16).astype(jnp.float32)
        assert float(jnp.mean(has_more_bits, where=leaf != 0)) > 0.25, path_of(path)


def test_the_bf16_gradient_of_the_embedding_is_exact_however_many_rows_add_up():
    count, length, completion = 1024, 12, 4
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (count, length)).astype(np.int32)
    tokens[:, ::2] = 7  # as tokens of a template, in every row
    positions = np.tile(np.arange(length, dtype=np.int32), (3, 1))
    prompts = [Prompt(row, positions, length, (), "") for row in tokens]
    completions = rng.integers(0, 256, (count, 1, completion)).astype(np.int32)
    batch = GroupBatch(batch_of(prompts, SHALLOW), completions)
    weights = np.full(completions.shape, 1 / completions.size, np.float32)
    found = []
    for dtype in ("float32", "bfloat16"):
        model = tiny.model_of(SHALLOW, dtype=jnp.dtype(dtype))
        params = tiny.parameters_of(model)
        embedding = {"embed_tokens": {"embedding": jnp.zeros_like(params["embed_tokens"]["embedding"])}}
        total = jax.tree.map(lambda _: None, params) | embedding  # all else is frozen
        gradient, _ = jax.jit(partial(sft_gradient, model))(params, total, batch, weights)
        found.append(np.asarray(gradient["embed_tokens"]["embedding"]))
    exact, half = found
    assert np.linalg.norm(half - exact) < 0.01 * np.linalg.norm(exact)
    assert np.linalg.norm(half[7] - exact[7]) < 0.01 * np.linalg.norm(exact[7])


def test_a_new_stage_keeps_moments_and_restarts_the_schedule():
    params = {"layers": {"mlp": {"up_proj": {"kernel": jnp.ones((2, 3, 4))}}}}
    settings = Optimizer(learning_rate=1.0, schedule=Schedule.LINEAR)
    optimizer = make_optimizer(settings, 4)
    moments = optimizer.init(params)
    for _ in range(3):
        updates, moments = optimizer.update(jax.tree.map(jnp.ones_like, params), moments, params)
    kept = restart_schedule(moments)
    adam, schedule = (optax.tree.get_all_with_path(kept, "count")[i][1] for i in (0, 1))
    assert (int(adam), int(schedule)) == (3, 0)
    after, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), kept, params)
    ratio = float(jax.tree.leaves(after)[0][0, 0, 0] / jax.tree.leaves(updates)[0][0, 0, 0])
    assert ratio == pytest.approx(2.0, rel=1e-3)  # rates of the first and the third update: 1 and 1/2
