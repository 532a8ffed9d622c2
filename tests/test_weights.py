"""Loading, converting and exporting checkpoints: strict, bit-exact, with bounded memory, all or nothing."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from currreft_jax import generate
from currreft_jax.config import Config, Init, Pretrained, Source, Stage
from currreft_jax.data.processor import load as load_processor
from currreft_jax.models import hf
from currreft_jax.models.config import UnsupportedModel
from currreft_jax.runtime import checkpoint as native
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.training import trainer
from currreft_jax.training.start import check_base_weights
from tests import tiny
from tests.marks import quick
from tools.convert_weights.__main__ import main

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "source")


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS)


def assert_same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", quick([np.float32, ml_dtypes.bfloat16]), ids=["fp32", "bf16"])
def test_conversion_to_native_and_back_is_bit_identical(tmp_path, config, dtype, capsys):
    source, between, back = (tmp_path / name for name in ("source", "native", "back"))
    tiny.write_checkpoint(source, config)
    rewrite(source, lambda tensors: {name: tensor.astype(dtype) for name, tensor in tensors.items()})
    assert main([str(source), str(between), "--verify"]) == 0
    assert main([str(between), str(back), "--to-hf", "--verify"]) == 0
    before, after = load_file(source / WEIGHTS), load_file(back / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (
            after[name].dtype,
            after[name].shape,
            after[name].tobytes(),
        ), name
    assert ("lm_head.weight" in after) == (not config.tie_word_embeddings)
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert capsys.readouterr().out.count("verified") == 2


def test_large_models_are_written_to_several_files(folder, tmp_path, monkeypatch):
    model, parameters = hf.load(folder)
    monkeypatch.setattr(hf, "MAX_FILE_BYTES", 300_000)
    (tmp_path / "out").mkdir()
    hf.save(model, parameters, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(path.stat().st_size < 300_000 + 8192 for path in files)
    index = json.loads((tmp_path / "out" / hf.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(parameters))
    assert_same(hf.load(tmp_path / "out")[1], parameters)


def in_memory_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def nested(flat: dict) -> dict:
    """The layout of transformers 5."""
    root = {"model_type", "architectures", "vision_config", "tie_word_embeddings", "image_token_id", "video_token_id"}
    text = {name: value for name, value in flat.items() if name not in root}
    scaling, theta = text.pop("rope_scaling"), text.pop("rope_theta")
    text["rope_parameters"] = {**scaling, "rope_type": "default", "rope_theta": theta}
    text["dtype"] = text.pop("torch_dtype")
    vision = dict(flat["vision_config"], rope_parameters={"rope_type": "axial", "rope_theta": 10000.0})
    return {**{name: flat[name] for name in root}, "text_config": text, "vision_config": vision}


def test_names_and_config_of_later_transformers_load(folder, tmp_path):
    expected = hf.load(folder)
    rewrite(folder, lambda tensors: {in_memory_name(name): tensor for name, tensor in tensors.items()})
    path = folder / "config.json"
    path.write_text(json.dumps(nested(json.loads(path.read_text()))))
    model, parameters = hf.load(folder)
    assert model.config == expected[0].config
    assert_same(parameters, expected[1])


def test_the_head_of_a_tied_checkpoint_must_equal_its_embedding(folder):
    expected = hf.load(folder)[1]
    rewrite(folder, lambda tensors: {**tensors, hf.HEAD: tensors[hf.EMBEDDING]})
    assert_same(hf.load(folder)[1], expected)
    rewrite(folder, lambda tensors: {**tensors, hf.HEAD: tensors[hf.EMBEDDING] + 1})
    with pytest.raises(hf.WeightError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        hf.load(folder)


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.norm.weight"), "model.norm.weight is missing"),
        (lambda t: {**t, "model.layers.3.mlp.up_proj.weight": t["model.norm.weight"]}, r"layers\.3\..* is unknown"),
        (
            lambda t: {**t, "model.norm.weight": np.ones(95, np.float32)},
            r"norm.weight has shape \[95\], expected \[96\]",
        ),
        (lambda t: {**t, "model.visual.merger.ln_q.weight": t["visual.merger.ln_q.weight"]}, "stands twice"),
        (lambda t: {**t, "model.norm.weight": np.ones(96, np.int8)}, "norm.weight is I8"),
    ],
)
def test_errors_name_the_wrong_weight(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(hf.WeightError, match=message):
        hf.load(folder)


def test_errors_name_the_damaged_file(folder, tmp_path):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(hf.WeightError, match="not a whole safetensors file"):
        hf.load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        hf.load(folder)
    for weight_map, message in (
        ({"a": "../secret.safetensors"}, "which is no safetensors file of its folder"),
        ({"a": "model-00001-of-00002.safetensors"}, "is missing, though"),
        (["a"], "is not an index"),
        ({}, "names no file"),
        ({"a": 3}, "names 3, which is no"),
        ({"a": "pytorch_model.bin"}, "pytorch_model.bin', which is no"),
    ):
        (folder / hf.INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(hf.WeightError, match=message):
            hf.load(folder)
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id"):
        hf.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="hf download owner/name --local-dir name"):
        hf.load("owner/name")
    with pytest.raises(UnsupportedModel, match="is not a checkpoint folder"):
        hf.load(tmp_path)


def leave_only(folder: Path, name: str, content: bytes = b"") -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "adapter_config.json",
            b'{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}',
            "holds a LoRA adapter and no model: merge it into Qwen/Qwen2.5-VL-3B-Instruct (in peft: merge_and_unload",
        ),
        ("adapter_model.safetensors", b"", "holds a LoRA adapter and no model: merge it into its base model (in peft"),
        (
            "pytorch_model.bin",
            b"",
            "holds its weights in pytorch_model.bin, a pickle, which could run any program: save",
        ),
        ("pytorch_model-00001-of-00002.bin", b"", "holds its weights in pytorch_model-00001-of-00002.bin, a pickle"),
        (
            "model-00001-of-00002.safetensors",
            b"",
            "holds model-00001-of-00002.safetensors but no model.safetensors.index",
        ),
        ("training_args.bin", b"", "holds no model.safetensors: download it, or give a folder with weights"),
    ],
)
def test_folders_without_readable_weights_are_refused_by_all_programs(folder, tmp_path, capsys, name, content, message):
    leave_only(folder, name, content)
    assert main([str(folder), str(tmp_path / "out")]) == 1
    converted = capsys.readouterr().err
    assert generate.main([f"--model={folder}", "--prompt=x"]) == 1
    generated = capsys.readouterr().err.splitlines()[-1]
    (rows := tmp_path / "rows.jsonl").touch()
    config = Config(model=Pretrained(path=str(folder)), stages=[Stage("one", [Source(str(rows))])])
    with pytest.raises(FileNotFoundError) as refused:  # before it reads rows
        trainer.run(config, tmp_path / "run")
    for error in (converted, generated, str(refused.value)):
        assert message in error
        assert "\n" not in error.strip()


def test_an_adapter_alone_is_named_before_its_missing_config(folder):
    leave_only(folder, "adapter_config.json", b'{"base_model_name_or_path": "base"}')
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match="holds a LoRA adapter and no model: merge it into base"):
        load_processor(folder)


def test_base_weights_are_checked_only_where_a_run_begins_with_them(folder, converted, tmp_path):
    config = Config(model=Pretrained(path=str(folder)))
    check_base_weights(config, tmp_path, None)
    (folder / WEIGHTS).unlink()
    check_base_weights(config, tmp_path, tmp_path / "stage1")
    check_base_weights(replace(config, model=replace(config.model, init=Init.RANDOM)), tmp_path, None)
    check_base_weights(Config(model=Pretrained(path=str(converted))), tmp_path, None)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        check_base_weights(config, tmp_path, None)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    check_base_weights(config, tmp_path, None)


def test_weights_of_two_dtypes_need_an_explicit_dtype(folder):
    rewrite(folder, lambda t: {**t, "model.norm.weight": t["model.norm.weight"].astype(ml_dtypes.bfloat16)})
    with pytest.raises(hf.WeightError, match="mixes bfloat16, float32: choose one with --dtype"):
        hf.load(folder)
    assert hf.load(folder, param_dtype=jnp.float32)[0].dtype == jnp.float32
    model, parameters = hf.load(folder, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert model.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(parameters)} == {np.dtype(np.float32)}


def test_the_host_holds_one_tensor_at_a_time(tmp_path):
    config = replace(tiny.CONFIG, vocab_size=10_000, num_hidden_layers=24)
    tiny.write_checkpoint(tmp_path / "source", config)
    largest = 4 * config.vocab_size * config.hidden_size
    assert (tmp_path / "source" / WEIGHTS).stat().st_size > 2.4 * largest
    hf.load(tmp_path / "source")  # compiles
    tracemalloc.start()
    hf.load(tmp_path / "source")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest <= peak < 1.3 * largest


class DeviceTensor:
    """A tensor that may be waited for, but not fetched."""

    def block_until_ready(self) -> None:
        pass

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        pytest.fail("a host that writes nothing fetches a tensor")


def test_a_host_that_writes_nothing_fetches_nothing(folder, tmp_path, monkeypatch):
    model, parameters = hf.load(folder)
    gather, taken = hf._gather_tensors, []

    def gather_tensors(parameters):
        for name, _ in gather(parameters):
            yield name, DeviceTensor()
            taken.append(name)

    monkeypatch.setattr(hf, "_gather_tensors", gather_tensors)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    (tmp_path / "out").mkdir()
    hf.save(model, parameters, tmp_path / "out")
    assert sorted(taken) == sorted(load_file(folder / WEIGHTS))  # it takes part in every gather
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("data", "fsdp", "tensor"), quick([(2, 2, 2), (1, 8, 1), (1, 1, 8)], 0))
def test_loading_onto_a_mesh(folder, tmp_path, data, fsdp, tensor):
    sizes = data, fsdp, tensor
    _, expected = hf.load(folder)
    mesh = make_mesh(*sizes)
    assert main([str(folder), str(tmp_path / "native")]) == 0
    for source in (folder, tmp_path / "native"):
        model, parameters = hf.load(source, mesh=mesh)
        assert_same(parameters, expected)
        for leaf, abstract in zip(
            jax.tree.leaves(parameters), jax.tree.leaves(model.abstract(jnp.float32)), strict=True
        ):
            assert leaf.sharding == abstract.sharding
    assert_same(dict(hf.hub_tensors(parameters)), dict(hf.hub_tensors(expected)))


@pytest.mark.slow
def test_conversion_to_another_dtype(folder, tmp_path):
    assert main([str(folder), str(tmp_path / "half"), "--dtype", "bfloat16", "--verify"]) == 0
    model, parameters = hf.load(tmp_path / "half")
    assert model.dtype == jnp.bfloat16 and model.config.dtype == "bfloat16"
    exact = hf.load(folder)[1]
    assert_same(parameters, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))
    assert hf.load(tmp_path / "half", param_dtype=jnp.float32)[1]["norm"]["scale"].dtype == jnp.float32


def test_an_interrupted_conversion_leaves_no_destination(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hf, "_write_config", stopped)
        with pytest.raises(KeyboardInterrupt):
            main([str(folder), str(out)])
    assert not out.exists() and (tmp_path / "out.partial").exists()
    assert main([str(folder), str(out)]) == 0
    assert not (tmp_path / "out.partial").exists()


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for taken in ("out", "link"):
        assert main([str(folder), str(tmp_path / taken)]) == 1
        assert "exists already" in capsys.readouterr().err


def test_two_conversions_to_one_folder_do_not_mix(folder, tmp_path, capsys):
    with native.atomic_folder(tmp_path / "out") as first:
        (first / "one").write_text("1")
        assert main([str(folder), str(tmp_path / "out")]) == 1
        assert "another process is writing" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]


def test_conversion_errors_are_one_line(folder, tmp_path, capsys):
    for source in ("nowhere", "../nowhere", "./x/y"):
        assert main([source, str(tmp_path / "out")]) == 1
        assert "neither a folder nor the id" in capsys.readouterr().err
    (folder / "config.json").write_text('{"model_type":\n oops}')
    assert main([str(folder), str(tmp_path / "out")]) == 1
    assert "config.json:2: not JSON" in capsys.readouterr().err


def test_verify_detects_a_difference(folder, tmp_path, monkeypatch, capsys):
    save = hf.save_native

    def altered(model, parameters, out):
        parameters["norm"]["scale"] = parameters["norm"]["scale"].at[3].add(1e-6)
        save(model, parameters, out)

    monkeypatch.setattr(hf, "save_native", altered)
    assert main([str(folder), str(tmp_path / "out"), "--verify"]) == 1
    assert "weights differ from" in (error := capsys.readouterr().err) and "model.norm.weight" in error
    assert not (tmp_path / "out").exists()


@pytest.fixture
def converted(folder, tmp_path):
    assert main([str(folder), str(tmp_path / "native")]) == 0
    return tmp_path / "native"


def test_a_flipped_bit_in_a_native_checkpoint_raises(converted):
    data = max((converted / native.ARRAYS).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(native.DamagedCheckpoint, match=r"checksum of .* does not match"):
        hf.load(converted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["arrays"]["norm/scale"].update(checksum=0), "checksum of norm/scale"),
        (lambda m: m["arrays"].pop("norm/scale"), "differ in norm/scale"),
        (lambda m: m["arrays"]["norm/scale"].update(shape=[95]), r"norm/scale is float32\[95\]"),
        (lambda m: m.update(format="other"), "format 'other'"),
        (lambda m: m.clear(), "missing or damaged"),
    ],
)
def test_a_native_checkpoint_that_differs_from_its_manifest_raises(converted, change, message):
    path = converted / native.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(native.DamagedCheckpoint, match=message):
        hf.load(converted)


def test_checksums_detect_flips_and_swaps_on_any_mesh():
    x = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
    mesh = make_mesh(1, 8, 1)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("fsdp")))
    (original,) = native.checksums({"x": x}).values()
    assert native.checksums({"x": sharded})["x"] == original
    flipped, swapped, two_signs = x.copy(), x.copy(), x.copy()
    flipped.view(np.uint32)[3, 5] ^= 1
    swapped[[0, 1]] = swapped[[1, 0]]
    two_signs[[2, 6], 3] *= -1
    altered = (x, flipped, swapped, two_signs, x.T, -x)
    assert len({native.checksums({"x": y})["x"]["checksum"] for y in altered}) == len(altered)


def test_help_lists_arguments_and_examples():
    result = subprocess.run(
        [sys.executable, "-m", "tools.convert_weights", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("SRC", "DST", "--to-hf", "--verify", "--dtype", "examples:"):
        assert word in result.stdout
