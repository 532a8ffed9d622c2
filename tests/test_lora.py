"""LoRA adapters: no effect at first, the only trained parameters, equal to merged weights, on every mesh."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import currreft_jax as cr
from currreft_jax.config import (
    CacheType,
    Config,
    Lora,
    LossAverage,
    Optimizer,
    Precision,
    Sampling,
    Schedule,
    Source,
    Stage,
    validate,
)
from currreft_jax.data.processor import load as load_processor
from currreft_jax.models import hf
from currreft_jax.models.lora import add_adapters, merge_adapters
from currreft_jax.models.qwen2_5_vl import token_logprobs
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.sharding import make_mesh, path_of
from currreft_jax.session.sources import to_compute_dtype, to_policy
from currreft_jax.structs import GroupBatch
from currreft_jax.training import start, trainer
from currreft_jax.training.gradients import sft_gradient
from currreft_jax.training.losses import loss_counts, loss_weights
from currreft_jax.training.optimizer import make_optimizer, trainable_params
from currreft_jax.training.update import init_state, zero_gradient
from tests import tiny
from tests.groups import batch_of
from tests.marks import quick
from tests.test_train import config_of, logged_metrics, rows  # noqa: F401 rows is a fixture
from tests.updates import make_update

RANK, ALPHA = 4, 10.0
SCALE = ALPHA / RANK
LINEAR = [f"self_attn/{name}_proj" for name in "qkvo"] + [f"mlp/{name}_proj" for name in ("gate", "up", "down")]


def named(tree) -> dict:
    return {path_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def is_adapter(name: str) -> bool:
    return name.split("/")[-1] in ("lora_a", "lora_b")


def plain_of(**settings):
    return tiny.model_of(tokenizer_size=264, **settings)


def lora_of(**settings):
    return plain_of(lora_rank=RANK, lora_alpha=ALPHA, **settings)


def with_random_adapters(parameters):
    """Replaces all adapters by random ones, as large as after long training."""

    def replace_adapter(path, x):
        name = path_of(path)
        if not is_adapter(name):
            return x
        adapter = 0.08 * np.random.default_rng(len(name) + ord(name[-8])).standard_normal(x.shape)
        return jax.device_put(jnp.asarray(adapter, x.dtype), x.sharding)

    return jax.tree_util.tree_map_with_path(replace_adapter, parameters)


def batch_for(checkpoint, count: int = 8, shards: int = 1) -> tuple[GroupBatch, np.ndarray]:
    processor = load_processor(checkpoint)
    prompts = [processor.prompt(tiny.user(f"what is {n}?", 1), [tiny.picture(60, 60, n)]) for n in range(count)]
    tokens = np.random.default_rng(0).integers(0, 256, (count, 1, 5)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    weights = loss_weights(mask, LossAverage.TOKEN, loss_counts([mask]))
    return GroupBatch(batch_of(prompts, processor.config, shards=shards), tokens), weights


@pytest.fixture(scope="module")
def plain():
    return tiny.parameters_of(plain_of())


@pytest.fixture(scope="module")
def adapters(plain):
    return with_random_adapters(add_adapters(lora_of(), plain, 0))


def test_all_linear_layers_of_the_decoder_and_no_others_have_adapters(plain):
    parameters = named(add_adapters(lora_of(), plain, 0))
    assert {name for name in parameters if is_adapter(name)} == {
        f"layers/{linear}/lora_{letter}" for linear in LINEAR for letter in "ab"
    }
    assert {name for name in parameters if not is_adapter(name)} == named(plain).keys()
    a, b = (parameters[f"layers/self_attn/o_proj/lora_{letter}"] for letter in "ab")
    assert (a.shape, b.shape) == ((3, 6, 16, RANK), (3, RANK, 96))
    assert float(jnp.std(a)) == pytest.approx(96**-0.5, rel=0.1) and not np.asarray(b).any()
    assert len(np.unique(np.asarray(a))) > 0.99 * a.size  # no layer repeats another


@pytest.mark.slow
def test_init_of_kernels_does_not_depend_on_adapters():
    without, with_them = named(plain_of().init(3)), named(lora_of().init(3))
    for name, x in without.items():
        np.testing.assert_array_equal(x, with_them[name], err_msg=name)


@pytest.mark.slow
def test_fresh_adapters_have_no_effect_and_depend_only_on_the_seed(checkpoint, plain):
    model = lora_of()
    fresh = add_adapters(model, plain, 5)
    batch, _ = batch_for(checkpoint)
    before = token_logprobs(plain_of(), plain, batch.prompts, batch.tokens)
    np.testing.assert_array_equal(token_logprobs(model, fresh, batch.prompts, batch.tokens), before)
    on_mesh = lora_of(mesh=make_mesh(2, 2, 2))
    again = named(add_adapters(on_mesh, tiny.parameters_of(plain_of(mesh=on_mesh.mesh)), 5))
    for name, x in named(fresh).items():
        np.testing.assert_array_equal(x, again[name], err_msg=name)
    other = named(add_adapters(model, plain, 6))["layers/mlp/up_proj/lora_a"]
    assert not np.allclose(other, fresh["layers"]["mlp"]["up_proj"]["lora_a"], atol=1e-3)


@pytest.mark.parametrize("linear", LINEAR)
def test_each_adapter_equals_its_product_added_to_the_kernel(checkpoint, plain, adapters, linear):
    """The adapter of one linear layer at a time, added by hand."""
    model, block, name = lora_of(), *linear.split("/")
    one = jax.tree_util.tree_map_with_path(
        lambda path, x: x if not is_adapter(path_of(path)) or linear in path_of(path) else jnp.zeros_like(x), adapters
    )
    layer = {part: np.asarray(x) for part, x in adapters["layers"][block][name].items()}
    by_hand = np.stack([np.tensordot(a, b, 1) for a, b in zip(layer["lora_a"], layer["lora_b"], strict=True)])
    kernel = layer["kernel"] + SCALE * by_hand
    expected = {**plain, "layers": {**plain["layers"], block: {**plain["layers"][block]}}}
    expected["layers"][block][name] = {**plain["layers"][block][name], "kernel": jnp.asarray(kernel)}
    batch, _ = batch_for(checkpoint)
    wanted = np.asarray(token_logprobs(plain_of(), expected, batch.prompts, batch.tokens))
    found = np.asarray(token_logprobs(model, one, batch.prompts, batch.tokens))
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
    without = np.asarray(token_logprobs(plain_of(), plain, batch.prompts, batch.tokens))
    assert np.abs(wanted - without).max() > 1e-3


@pytest.mark.parametrize("mesh", quick([((1, 1, 1),), ((2, 2, 2),)]), ids=str)
def test_merged_parameters_have_no_adapters_and_the_same_logprobs(checkpoint, mesh):
    mesh = make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])
    model, plain_model = lora_of(mesh=mesh), plain_of(mesh=mesh)
    parameters = with_random_adapters(add_adapters(model, tiny.parameters_of(plain_of(mesh=mesh)), 0))
    batch, _ = batch_for(checkpoint, shards=4 if mesh.size > 1 else 1)
    batch = to_devices(batch, mesh)
    found = merge_adapters(model, parameters)
    assert {name: (x.shape, x.sharding) for name, x in named(found).items()} == {
        name: (x.shape, x.sharding) for name, x in named(plain_model.abstract(jnp.float32)).items()
    }
    unmerged, merged = (
        np.asarray(token_logprobs(m, p, batch.prompts, batch.tokens))
        for m, p in ((model, parameters), (plain_model, found))
    )
    np.testing.assert_allclose(unmerged, merged, atol=1e-5, rtol=0)
    assert merge_adapters(plain_model, found) is found
    with pytest.raises(ValueError, match="adapters but the model has not"):
        merge_adapters(plain_model, parameters)


@pytest.mark.slow
def test_gradients_follow_from_those_of_the_merged_kernel(checkpoint, plain, adapters):
    """dA = s dW Bᵀ and dB = s Aᵀ dW, where dW is the gradient of the merged kernel."""
    model, batch = lora_of(), batch_for(checkpoint)
    zeros = zero_gradient(model, Optimizer())()
    assert set(named(zeros)) == {name for name in named(adapters) if is_adapter(name)}
    found, loss = jax.jit(partial(sft_gradient, model))(adapters, zeros, *batch)
    whole = merge_adapters(model, adapters)
    of_whole, same_loss = jax.jit(partial(sft_gradient, plain_of()))(whole, jax.tree.map(jnp.zeros_like, whole), *batch)
    assert float(loss["loss"]) == pytest.approx(float(same_loss["loss"]), rel=1e-5)
    for linear in LINEAR:
        block, name = linear.split("/")
        a, b = (np.asarray(adapters["layers"][block][name][part]) for part in ("lora_a", "lora_b"))
        kernel = np.asarray(of_whole["layers"][block][name]["kernel"])
        outputs, inputs = b.ndim - 2, a.ndim - 2
        for layer in range(3):
            to_rank = np.moveaxis(b[layer], 0, -1)
            wanted = {
                "lora_a": SCALE * np.tensordot(kernel[layer], to_rank, outputs),
                "lora_b": SCALE * np.tensordot(np.moveaxis(a[layer], -1, 0), kernel[layer], inputs),
            }
            for part, gradient in wanted.items():
                assert np.abs(gradient).max() > 1e-5
                np.testing.assert_allclose(
                    found["layers"][block][name][part][layer],
                    gradient,
                    atol=2e-5 * np.abs(gradient).max(),
                    err_msg=f"{linear}/{part} {layer}",
                )


def test_a_step_updates_only_adapters_and_has_moments_only_for_them(checkpoint, plain):
    model = lora_of()
    settings = Optimizer(learning_rate=1e-2, schedule=Schedule.CONSTANT)
    optimizer = make_optimizer(settings, 4)
    state = init_state(model, optimizer, jax.tree.map(jnp.copy, add_adapters(model, plain, 0)))
    sizes = {name: x.nbytes for name, x in named(state.params).items()}
    adapter_bytes = sum(size for name, size in sizes.items() if is_adapter(name))
    held = sum(x.nbytes for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert held == 2 * adapter_bytes < 0.2 * sum(sizes.values())
    update = make_update(model, optimizer, settings, sft_gradient)
    assert sum(x.nbytes for x in jax.tree.leaves(zero_gradient(model, settings)())) == adapter_bytes
    before = jax.tree.map(np.array, state.params)
    losses = []
    for _ in range(4):
        state, step_metrics = update(state, [[batch_for(checkpoint)]])
        losses.append(float(step_metrics["loss"]))
        assert float(step_metrics["grad_norm"]) > 0
    assert losses[-1] < losses[0]
    after = named(state.params)
    for name, old in named(before).items():
        assert np.array_equal(old, after[name]) != is_adapter(name), name


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["vision", "adapters"])
def test_frozen_parameters_cost_no_gradient_matmuls(checkpoint, plain, frozen):
    """The backward pass has two matmuls for each one of the forward pass; one gives the kernel's gradient."""
    model = lora_of() if frozen == "adapters" else plain_of()
    parameters = add_adapters(model, plain, 0) if frozen == "adapters" else plain
    batch = batch_for(checkpoint)

    def cost(total) -> float:
        compiled = jax.jit(partial(sft_gradient, model)).lower(parameters, total, *batch).compile()
        return compiled.cost_analysis()["flops"]

    every = jax.tree.map(jnp.zeros_like, parameters)
    part = trainable_params(Optimizer(freeze_vision=True), every)
    assert cost(part) < 0.75 * cost(every)


def test_the_policy_that_is_sampled_from_is_merged_in_fp32(plain):
    """An adapter below half a unit of a bf16 kernel's last place, on a kernel that lies just below the middle."""
    model = lora_of(dtype=jnp.dtype("bfloat16"))
    kernel = jnp.full_like(plain["layers"]["mlp"]["up_proj"]["kernel"], 1 + 2**-8 - 2**-12)
    parameters = add_adapters(model, plain, 0)
    mlp = parameters["layers"]["mlp"]
    one = {"kernel": kernel, "lora_a": jnp.ones((3, 96, RANK)), "lora_b": jnp.full((3, RANK, 112), 2**-10 / ALPHA)}
    parameters = {**parameters, "layers": {**parameters["layers"], "mlp": {**mlp, "up_proj": one}}}
    policy = to_policy(model)(parameters)
    assert {name: (x.shape, x.dtype) for name, x in named(policy).items()} == {
        name: (x.shape, x.dtype) for name, x in named(model.merged.abstract(jnp.dtype("bfloat16"))).items()
    }
    # 1 + 2^-8 - 2^-12 + 2^-10 rounds up to 1 + 2^-7; the kernel alone rounds down to 1, and 2^-10 more is still 1.
    np.testing.assert_array_equal(policy["layers"]["mlp"]["up_proj"]["kernel"].astype(jnp.float32), 1 + 2**-7)
    without = plain_of(dtype=jnp.dtype("bfloat16"))
    assert to_policy(without) is to_compute_dtype(without)


def test_an_export_has_no_adapters_and_the_same_logprobs(checkpoint, adapters, tmp_path):
    model = lora_of()
    processor = load_processor(checkpoint)
    hf.export(model, adapters, processor, tmp_path / "out")
    loaded, parameters = hf.load(tmp_path / "out")
    assert loaded.adapters is None and not any(map(is_adapter, named(parameters)))
    (tmp_path / "native").mkdir()
    hf.save_native(model, adapters, tmp_path / "native")
    native = hf.load(tmp_path / "native")[1]
    batch, _ = batch_for(checkpoint)
    wanted = np.asarray(token_logprobs(model, adapters, batch.prompts, batch.tokens))
    for plain in (parameters, native):
        found = np.asarray(token_logprobs(loaded, plain, batch.prompts, batch.tokens))
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("data", "fsdp", "tensor"), quick([(2, 2, 2), (1, 1, 1)], 0))
def test_the_samplers_logprobs_are_the_trainers(checkpoint, data, fsdp, tensor):
    mesh = data, fsdp, tensor
    mesh = make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])
    model = lora_of(mesh=mesh)
    parameters = with_random_adapters(add_adapters(model, tiny.parameters_of(plain_of(mesh=mesh)), 0))
    processor = load_processor(checkpoint)
    prompts = [processor.prompt(tiny.user("?" * n, 1), [tiny.picture(60, 60, n)], key=n) for n in range(4)]
    exact = Sampling(
        group_size=2,
        max_new_tokens=6,
        segment=6,
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
        prompt_lengths=(96,),
    )
    rollout = cr.sample(model, parameters, processor, prompts, exact)
    batch = to_devices(batch_of(prompts, model.config, shards=4 if mesh.size > 1 else 1), mesh)
    scored = np.asarray(token_logprobs(model, parameters, batch, np.asarray(rollout.tokens)))
    mask = np.asarray(rollout.mask)
    assert np.abs(scored - rollout.logprobs)[mask].max() <= 1e-5
    plain = tiny.parameters_of(plain_of(mesh=mesh))
    without = np.asarray(token_logprobs(plain_of(mesh=mesh), plain, batch, np.asarray(rollout.tokens)))
    assert np.abs(without - rollout.logprobs)[mask].max() > 0.01


@pytest.mark.slow
def test_gradients_on_a_mesh_equal_those_on_one_device(checkpoint):
    found = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(2, 2, 2)):
        model = lora_of(mesh=mesh)
        parameters = with_random_adapters(add_adapters(model, tiny.parameters_of(plain_of(mesh=mesh)), 0))
        batch = to_devices(batch_for(checkpoint, shards=4 if mesh.size > 1 else 1), mesh)
        gradient = jax.jit(partial(sft_gradient, model))
        total, step_metrics = gradient(parameters, zero_gradient(model, Optimizer())(), *batch)
        found.append((float(step_metrics["loss"]), {name: np.asarray(x) for name, x in named(total).items()}))
        specs = {
            name: str(x.sharding.spec)
            for name, x in named(add_adapters(model, merge_adapters(model, parameters), 0)).items()
        }
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, x in found[0][1].items():
        np.testing.assert_allclose(x, found[1][1][name], atol=1e-5 * np.abs(x).max(), err_msg=name)
    assert "fsdp" in specs["layers/mlp/up_proj/lora_a"] and "tensor" in specs["layers/mlp/up_proj/lora_b"]
    assert "tensor" in specs["layers/mlp/down_proj/lora_a"] and "fsdp" in specs["layers/mlp/down_proj/lora_b"]


@pytest.mark.slow
def test_bf16_matmuls_give_fp32_gradients_of_adapters(checkpoint, adapters):
    model = lora_of(dtype=jnp.dtype("bfloat16"))
    batch = batch_for(checkpoint)
    zeros = zero_gradient(model, Optimizer())()
    half, exact = (jax.jit(partial(sft_gradient, m))(adapters, zeros, *batch)[0] for m in (model, lora_of()))
    for name, x in named(half).items():
        assert x.dtype == jnp.float32
        wanted = np.asarray(named(exact)[name])
        assert np.linalg.norm(x - wanted) < 0.1 * np.linalg.norm(wanted), name


@pytest.mark.slow
def test_a_run_exports_merged_weights_and_the_next_stage_continues_with_adapters(
    checkpoint,
    rows,  # noqa: F811
    tmp_path,
):
    config = config_of(checkpoint, rows, steps=3)
    config.model.lora = Lora(RANK, ALPHA)
    config.optimizer.learning_rate = 1e-2
    assert trainer.run(config, tmp_path) == tmp_path / "model"
    lines = logged_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]
    exported, before = (named(hf.load(folder)[1]) for folder in (tmp_path / "model", checkpoint))
    changed = {name for name, x in exported.items() if not np.array_equal(x, before[name])}
    assert changed == {f"layers/{linear}/kernel" for linear in LINEAR}
    config.stages.append(replace(config.stages[0], name="two"))
    model = lora_of(mesh=make_mesh(data=4, fsdp=2))
    masters = start.start_params(config, 1, model, tmp_path)
    assert all(np.asarray(x).any() for name, x in named(masters).items() if is_adapter(name))
    for name, x in named(merge_adapters(model, masters)).items():
        np.testing.assert_array_equal(x, exported[name], err_msg=name)


@pytest.mark.parametrize(("name", "value"), [("rank", -1), ("alpha", 0.0)])
def test_invalid_settings_raise(name, value):
    config = Config(stages=[Stage(sources=[Source("rows.jsonl")])])
    setattr(config.model.lora, name, value)
    with pytest.raises(ValueError, match=f"model.lora.{name} is {value}"):
        validate(config)
