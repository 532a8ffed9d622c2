"""Reading and writing checkpoints, Hugging Face's and native, and the one table of weight names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from hashlib import sha256
from itertools import groupby
from math import prod
from pathlib import Path
from shutil import copymode
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from currreft_jax.models.folder import (
    CONFIG,
    INDEX,
    WEIGHTS_FILE,
    explain_missing_weights,
    read_model_config,
    resolve,
    tokenizer_size,
    write_json,
)
from currreft_jax.models.lora import merge_adapters
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.checkpoint import MANIFEST, atomic_folder, read_manifest, restore_params, save_params
from currreft_jax.runtime.sharding import make_mesh

MAX_FILE_BYTES = 5 * 10**9
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


class SupportsSave(Protocol):
    """An object, such as a processor, that writes its files into a checkpoint folder."""

    def save(self, folder: Path) -> None:
        """Writes the files."""
        ...


class WeightError(ValueError):
    """A checkpoint's weights do not match its configuration."""


class Layout(Enum):
    """Shape of a Hugging Face tensor, given one layer of ours, `[*inputs, *outputs]`."""

    SAME = "same shape"
    VECTOR = "flattened"
    MATRIX = "[outputs, inputs], each flattened"
    CONVOLUTION = "[*outputs, *inputs]"


@dataclass(frozen=True, slots=True)
class WeightMapping:
    """Maps a parameter of ours to the tensors of a Hugging Face checkpoint.

    Attributes:
        path: path of our parameter, which has a leading layer axis if `name` has a `{}`.
        name: name of their tensor, with `{}` for the layer.
        layout: shape of their tensor.
        inputs: number of input axes of our parameter.
    """

    path: str
    name: str
    layout: Layout
    inputs: int = 0

    @property
    def stacked(self) -> bool:
        """True if the parameter holds all layers."""
        return "{}" in self.name

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their tensor, given that of one layer of ours."""
        inputs, outputs = shape[: self.inputs], shape[self.inputs :]
        return {
            Layout.SAME: shape,
            Layout.VECTOR: (prod(shape),),
            Layout.MATRIX: (prod(outputs), prod(inputs)),
            Layout.CONVOLUTION: outputs + inputs,
        }[self.layout]

    def hf_spec(self, spec: Sequence[Any]) -> P:
        """Returns the sharding of their tensor from which `from_hf` needs no communication."""
        inputs, outputs = spec[: self.inputs], spec[self.inputs :]
        return {
            Layout.SAME: P(*spec),
            Layout.VECTOR: P(*spec[:1]),
            Layout.MATRIX: P(*outputs[:1], *inputs[:1]),
            Layout.CONVOLUTION: P(*outputs, *inputs),
        }[self.layout]

    def from_hf(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Converts their tensor to one layer of ours, of the given shape."""
        if not self.inputs:
            return x.reshape(shape)
        return x.reshape(prod(shape[self.inputs :]), -1).T.reshape(shape)

    def to_hf(self, x: jax.Array) -> jax.Array:
        """Converts one layer of ours to their tensor."""
        if not self.inputs:
            return x.reshape(self.hf_shape(x.shape))
        return x.reshape(prod(x.shape[: self.inputs]), -1).T.reshape(self.hf_shape(x.shape))


def _scale(path: str, name: str) -> WeightMapping:
    return WeightMapping(f"{path}/scale", f"{name}.weight", Layout.VECTOR)


def _linear(path: str, name: str, inputs: int = 1, *, bias: bool) -> tuple[WeightMapping, ...]:
    kernel = WeightMapping(f"{path}/kernel", f"{name}.weight", Layout.MATRIX, inputs)
    return (kernel, WeightMapping(f"{path}/bias", f"{name}.bias", Layout.VECTOR)) if bias else (kernel,)


WEIGHTS = (
    WeightMapping("visual/patch_embed/proj/kernel", "visual.patch_embed.proj.weight", Layout.CONVOLUTION, inputs=4),
    _scale("visual/blocks/norm1", "visual.blocks.{}.norm1"),
    _scale("visual/blocks/norm2", "visual.blocks.{}.norm2"),
    *_linear("visual/blocks/attn/qkv", "visual.blocks.{}.attn.qkv", bias=True),
    *_linear("visual/blocks/attn/proj", "visual.blocks.{}.attn.proj", inputs=2, bias=True),
    *_linear("visual/blocks/mlp/gate_proj", "visual.blocks.{}.mlp.gate_proj", bias=True),
    *_linear("visual/blocks/mlp/up_proj", "visual.blocks.{}.mlp.up_proj", bias=True),
    *_linear("visual/blocks/mlp/down_proj", "visual.blocks.{}.mlp.down_proj", bias=True),
    _scale("visual/merger/ln_q", "visual.merger.ln_q"),
    *_linear("visual/merger/mlp_0", "visual.merger.mlp.0", bias=True),
    *_linear("visual/merger/mlp_2", "visual.merger.mlp.2", bias=True),
    WeightMapping("embed_tokens/embedding", "model.embed_tokens.weight", Layout.SAME),
    _scale("layers/input_layernorm", "model.layers.{}.input_layernorm"),
    _scale("layers/post_attention_layernorm", "model.layers.{}.post_attention_layernorm"),
    *_linear("layers/self_attn/q_proj", "model.layers.{}.self_attn.q_proj", bias=True),
    *_linear("layers/self_attn/k_proj", "model.layers.{}.self_attn.k_proj", bias=True),
    *_linear("layers/self_attn/v_proj", "model.layers.{}.self_attn.v_proj", bias=True),
    *_linear("layers/self_attn/o_proj", "model.layers.{}.self_attn.o_proj", inputs=2, bias=False),
    *_linear("layers/mlp/gate_proj", "model.layers.{}.mlp.gate_proj", bias=False),
    *_linear("layers/mlp/up_proj", "model.layers.{}.mlp.up_proj", bias=False),
    *_linear("layers/mlp/down_proj", "model.layers.{}.mlp.down_proj", bias=False),
    _scale("norm", "model.norm"),
    *_linear("lm_head", "lm_head", bias=False),
)
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def hub_name(key: str) -> str:
    """Returns the published name of a weight, given that name or the in-memory name of later transformers."""
    return re.sub(r"^model\.(visual\.)", r"\1", re.sub(r"^model\.language_model\.", "model.", key))


def _leaves(parameters: Parameters) -> Iterator[tuple[WeightMapping, Any]]:
    """Yields each parameter with its mapping, in the order of the table."""
    for weight in WEIGHTS:
        leaf: Any = parameters
        for key in weight.path.split("/"):
            leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
        if leaf is not None:
            yield weight, leaf


def _layers(weight: WeightMapping, leaf: Any) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
    """Yields their name, the layer and our shape of each tensor that a parameter holds."""
    if not weight.stacked:
        yield weight.name, None, leaf.shape
        return
    for layer in range(leaf.shape[0]):
        yield weight.name.format(layer), layer, leaf.shape[1:]


# ---------------------------------------------------------------------------------------------------- reading theirs


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a Hugging Face folder; those of an index all exist.

    Raises:
        FileNotFoundError: the folder has an adapter, a pickle or parts without an index instead; the message says what
            to do.
        WeightError: the index is damaged, or a file that it names is missing.
    """
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS_FILE).exists():
            raise FileNotFoundError(explain_missing_weights(folder))
        return [folder / WEIGHTS_FILE]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightError(f"{index} is not an index of weights: {error!r}") from error
    if not names:
        raise WeightError(f"{index} names no file")
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name)):
            raise WeightError(f"{index} names {name!r}, which is no safetensors file of its folder")
        if not (folder / name).exists():
            raise WeightError(f"{folder / name} is missing, though {INDEX} names it: download it again")
    return [folder / name for name in sorted(names)]


class _WeightFiles:
    """The open weight files of a folder, indexed by published name."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stack = ExitStack()
        self.tensors: dict[str, tuple[Any, str]] = {}

    def __enter__(self) -> _WeightFiles:
        problems = []
        for path in weight_files(self.folder):
            try:
                file = self.stack.enter_context(safe_open(path, framework="numpy"))
            except SafetensorError as error:
                raise WeightError(f"{path} is not a whole safetensors file: {error}; download it again") from error
            for key in file.keys():  # noqa: SIM118 not a dict
                name = hub_name(key)
                if name in self.tensors:
                    problems.append(f"{name} stands twice (again as {key} in {path.name})")
                if file.get_slice(key).get_dtype() not in DTYPES:
                    problems.append(f"{name} is {file.get_slice(key).get_dtype()}, not one of {', '.join(DTYPES)}")
                self.tensors[name] = (file, key)
        _raise_problems(self.folder, problems)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def slice(self, name: str) -> Any:
        file, key = self.tensors[name]
        return file.get_slice(key)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        return DTYPES[self.slice(name).get_dtype()]


def _raise_problems(folder: Path, problems: list[str]) -> None:
    """Raises a `WeightError` that lists the problems, if there are any."""
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightError(f"{folder}: the weights do not fit the configuration\n  {shown}{more}")


def _check_weights(files: _WeightFiles, abstract: Parameters, tied: bool) -> None:
    """Raises an error that names every weight that is missing, unknown or of a wrong shape."""
    expected = {
        name: weight.hf_shape(shape) for weight, leaf in _leaves(abstract) for name, _, shape in _layers(weight, leaf)
    }
    allowed = expected.keys() | ({HEAD} if tied else set())
    problems = [f"{name} is missing" for name in expected if name not in files.tensors]
    problems += [f"{name} is unknown" for name in files.tensors if name not in allowed]
    problems += [
        f"{name} has shape {list(files.shape(name))}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in files.tensors and files.shape(name) != shape
    ]
    if tied and not problems and HEAD in files.tensors and not _equal(files, HEAD, EMBEDDING):
        problems.append(f"{HEAD} differs from {EMBEDDING}, though tie_word_embeddings is true")
    _raise_problems(files.folder, problems)


def _equal(files: _WeightFiles, one: str, other: str) -> bool:
    """Compares two tensors in chunks of rows."""
    if files.shape(one) != files.shape(other) or files.dtype(one) != files.dtype(other):
        return False
    height = files.shape(one)[0]
    chunks = [slice(start, min(start + 1024, height)) for start in range(0, height, 1024)]
    return all(np.array_equal(files.slice(one)[chunk], files.slice(other)[chunk]) for chunk in chunks)


def _read_hf(folder: Path, abstract: Parameters, tied: bool) -> Parameters:
    """Reads tensor by tensor onto the devices; the host holds the local shards of one tensor at a time."""
    parameters: Parameters = {}
    with _WeightFiles(folder) as files:
        _check_weights(files, abstract, tied)
        total = sum(len(list(_layers(weight, leaf))) for weight, leaf in _leaves(abstract))
        with tqdm(total=total, desc=f"reading {folder.name}", unit="tensor", disable=None) as bar:
            for weight, leaf in _leaves(abstract):
                *parents, last = weight.path.split("/")
                parent = parameters
                for key in parents:
                    parent = parent.setdefault(key, {})
                parent[last] = _read_leaf(files, weight, leaf, bar)
    return parameters


def _cached_slices(tensor: Any) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads slices of a tensor in a file, each once even if several devices hold it."""
    slices: dict[str, np.ndarray] = {}

    def read_slice(index: Any) -> np.ndarray:
        if str(index) not in slices:
            slices[str(index)] = tensor[index]
        return slices[str(index)]

    return read_slice


def _read_leaf(files: _WeightFiles, weight: WeightMapping, leaf: jax.ShapeDtypeStruct, bar: tqdm) -> jax.Array:
    """Reads one parameter, layer by layer if it is stacked."""
    spec = (*leaf.sharding.spec, *(None,) * (len(leaf.shape) - len(leaf.sharding.spec)))
    hf_spec = weight.hf_spec(spec[1:] if weight.stacked else spec)

    def fetch(name: str) -> jax.Array:
        sharding = NamedSharding(leaf.sharding.mesh, hf_spec)
        bar.update()
        return jax.make_array_from_callback(
            files.shape(name), sharding, _cached_slices(files.slice(name)), files.dtype(name)
        )

    convert, make_stack, write_layer = _conversions(weight, leaf)
    if not weight.stacked:
        return convert(fetch(weight.name))
    stack = make_stack()
    for name, layer, _ in _layers(weight, leaf):
        stack = write_layer(stack, fetch(name), layer)
    return stack


@cache
def _conversions(weight: WeightMapping, leaf: jax.ShapeDtypeStruct) -> tuple[Callable[..., jax.Array], ...]:
    """Returns programs that convert their tensor, make a stack of layers, and write one; compiled once a process."""
    shape = leaf.shape[1:] if weight.stacked else leaf.shape

    def convert(tensor: jax.Array) -> jax.Array:
        return weight.from_hf(tensor, shape).astype(leaf.dtype)

    def write_layer(stack: jax.Array, tensor: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, convert(tensor), layer, 0)

    return (
        jax.jit(convert, out_shardings=leaf.sharding),
        jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding),
        jax.jit(write_layer, donate_argnums=0, out_shardings=leaf.sharding),
    )


# ------------------------------------------------------------------------------------------------------------ loading


def checkpoint_dtype(folder: Path) -> jnp.dtype:
    """Returns the dtype of a checkpoint's weights.

    Raises:
        WeightError: the weights have several dtypes, so the caller must choose one.
    """
    if (folder / MANIFEST).exists():
        dtypes = {jnp.dtype(leaf["dtype"]) for leaf in read_manifest(folder).values()}
    else:
        with _WeightFiles(folder) as files:
            dtypes = {jnp.dtype(files.dtype(name)) for name in files.tensors}
    if len(dtypes) > 1:
        raise WeightError(
            f"{folder} mixes {', '.join(sorted(map(str, dtypes)))}: choose one with --dtype (dtype= in Python)"
        )
    return dtypes.pop()


def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    param_dtype: Any = None,
) -> tuple[Model, Parameters]:
    """Loads a model onto the devices.

    Args:
        source: a Hugging Face folder, a hub id, or a folder written by `tools.convert_weights`.
        mesh: mesh of the parameters; this process's first device by default.
        dtype: dtype of activations and matmuls; `param_dtype` by default, or else the checkpoint's.
        param_dtype: dtype of the parameters; `dtype` by default. Training needs fp32.

    Raises:
        FileNotFoundError: no such checkpoint, or one without weights that can be read; see `weight_files`.
        UnsupportedModel: another architecture.
        WeightError: weights are missing, unknown, duplicated or of a wrong shape; the message names each.
        DamagedCheckpoint: a native checkpoint differs from what was written.
    """
    folder = resolve(source)
    config = read_model_config(folder)
    dtype = jnp.dtype(dtype or param_dtype or checkpoint_dtype(folder))
    param_dtype = jnp.dtype(param_dtype or dtype)
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    model = Model(config, mesh, dtype, tokenizer_size=tokenizer_size(folder))
    if not (folder / MANIFEST).exists():
        return model, _read_hf(folder, model.abstract(param_dtype), config.tie_word_embeddings)
    stored_dtype = checkpoint_dtype(folder)
    parameters = restore_params(folder, model.abstract(stored_dtype))
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(param_dtype), tree), donate_argnums=0)
    return model, parameters if stored_dtype == param_dtype else cast(parameters)


# ------------------------------------------------------------------------------------------------------------ writing


def hub_tensors(parameters: Parameters) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor under its published name, fetched by every host, one at a time."""
    for name, tensor in _gather_tensors(parameters):
        yield name, np.asarray(tensor)


def _gather_tensors(parameters: Parameters) -> Iterator[tuple[str, jax.Array]]:
    """Yields every tensor under its published name, whole on every device, one at a time; all hosts take part."""
    for weight, leaf in _leaves(parameters):
        gather = _gather_program(weight, leaf.sharding.mesh)
        for name, layer, _ in _layers(weight, leaf):
            yield name, gather(leaf, 0 if layer is None else layer)


@cache
def _gather_program(weight: WeightMapping, mesh: Mesh) -> Callable[[jax.Array, int], jax.Array]:
    """Returns the program that makes their tensor of a parameter or of its layer; compiled once a process."""
    return jax.jit(
        lambda x, layer: weight.to_hf(x[layer] if weight.stacked else x), out_shardings=NamedSharding(mesh, P())
    )


def save(model: Model, parameters: Parameters, folder: Path) -> None:
    """Writes weights and configuration in the published format, for transformers 4.49, 4.57 and 5 and for vLLM.

    Every host calls it. The first one fetches the weights, and holds those of one file; the others fetch nothing.

    Args:
        model: the model.
        parameters: its parameters; adapters are merged.
        folder: an existing folder. Files have `MAX_FILE_BYTES` at most.
    """
    parameters = merge_adapters(model, parameters)
    if jax.process_index():
        for _, tensor in _gather_tensors(parameters):
            tensor.block_until_ready()  # one at a time: its devices hold no more than those of the first host
        return
    file_index = _file_indices(parameters)
    count = 1 + max(file_index.values())
    file_names = {
        name: WEIGHTS_FILE if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"
        for name, index in file_index.items()
    }
    total = 0
    _write_config(model, parameters, folder)
    with tqdm(hub_tensors(parameters), total=len(file_names), desc="writing", unit="tensor", disable=None) as bar:
        for file, group in groupby(bar, key=lambda item: file_names[item[0]]):
            content = dict(group)
            total += sum(tensor.nbytes for tensor in content.values())
            save_file(content, folder / file, metadata={"format": "pt"})
            copymode(folder / CONFIG, folder / file)  # safetensors makes files readable by their owner only
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_names})


def export(model: Model, parameters: Parameters, processor: SupportsSave, folder: str | Path) -> None:
    """Writes a complete Hugging Face folder: weights, configuration, tokenizer and processor. Every host calls it.

    Args:
        model: the model.
        parameters: its parameters, written in their dtype; adapters are merged.
        processor: its processor.
        folder: the folder to make; it appears when it is complete.

    Raises:
        FileExistsError: the folder exists.
    """
    with atomic_folder(Path(folder)) as partial:
        save(model, parameters, partial)
        if jax.process_index() == 0:
            processor.save(partial)


def _write_config(model: Model, parameters: Parameters, folder: Path) -> None:
    dtype = jax.tree.leaves(parameters)[0].dtype
    write_json(folder / CONFIG, replace(model.config, dtype=str(dtype)).to_hf())


def _file_indices(parameters: Parameters) -> dict[str, int]:
    """Assigns each tensor to a file, filling files in the order of the table."""
    file_index: dict[str, int] = {}
    index = file_bytes = 0
    for weight, leaf in _leaves(parameters):
        for name, _, shape in _layers(weight, leaf):
            size = prod(shape) * leaf.dtype.itemsize
            if file_bytes and file_bytes + size > MAX_FILE_BYTES:
                index, file_bytes = index + 1, 0
            file_index[name] = index
            file_bytes += size
    return file_index


def save_native(model: Model, parameters: Parameters, folder: Path) -> None:
    """Writes the native, sharded format into an existing folder; a host reads only its shards. Merges adapters."""
    parameters = merge_adapters(model, parameters)
    save_params(folder, parameters)
    if jax.process_index() == 0:
        _write_config(model, parameters, folder)


def read_tensors(folder: Path, dtype: Any = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every tensor in the files of a Hugging Face folder, under its published name."""
    with _WeightFiles(folder) as files:
        for name in files.tensors:
            yield name, files.slice(name)[:].astype(dtype or files.dtype(name), copy=False)


def digests(named: Iterator[tuple[str, np.ndarray]]) -> dict[str, str]:
    """Computes the SHA-256 of each tensor's dtype, shape and bytes."""
    return {
        name: sha256(f"{tensor.dtype}{tensor.shape}".encode() + np.ascontiguousarray(tensor).tobytes()).hexdigest()
        for name, tensor in named
    }
