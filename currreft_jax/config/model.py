"""Settings of the model and of the mesh."""

from dataclasses import dataclass, field
from enum import Enum


class Remat(Enum):
    """Rematerialisation in the backward pass.

    `NONE` keeps all activations, `DOTS` the matrix products of a block, `BLOCK` the input of a block. `AUTO` is `DOTS`
    where the gradient of the largest batch then takes at most nine tenths of the devices' memory; else, and where that
    memory is unknown, `BLOCK`.
    """

    AUTO = "auto"
    NONE = "none"
    DOTS = "dots"
    BLOCK = "block"


class AttentionKernel(Enum):
    """How attention over whole sequences is computed; decoding always takes `EINSUM`.

    `AUTO` chooses by the platform, in bf16: cuDNN on CUDA, splash attention on TPUs; elsewhere, and in fp32, `EINSUM`,
    which writes the scores to memory.
    """

    AUTO = "auto"
    EINSUM = "einsum"
    CUDNN = "cudnn"
    SPLASH = "splash"


class Init(Enum):
    """Initial parameters: those of the checkpoint at `Pretrained.path`, or random ones."""

    CHECKPOINT = "checkpoint"
    RANDOM = "random"


@dataclass(slots=True)
class Lora:
    """Low-rank adapters on the decoder's linear layers (Hu et al. 2021); with them, nothing else is trained.

    Attributes:
        rank: rank of `A B`, which is added to each kernel; 0 for no adapters.
        alpha: `A B` is scaled by `alpha / rank`.
    """

    rank: int = 0
    alpha: float = 16.0


@dataclass(slots=True)
class Pretrained:
    """The model that training starts from.

    Attributes:
        path: a hub id, or a folder: Hugging Face's or converted.
        init: initial parameters; `RANDOM` needs only `config.json` and the tokenizer of the folder.
        dtype: dtype of activations and products; masters and optimizer state are fp32.
        remat: rematerialisation in the backward pass.
        attention: kernel of attention; a shape that it does not take is left to einsum, and the start says so.
        min_pixels: area that smaller images are enlarged to; 0 for the checkpoint's own.
        max_pixels: area that larger images are shrunk to; 0 for the checkpoint's own.
        lora: adapters.
    """

    path: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    init: Init = Init.CHECKPOINT
    dtype: str = "bfloat16"
    remat: Remat = Remat.AUTO
    attention: AttentionKernel = AttentionKernel.AUTO
    min_pixels: int = 0
    max_pixels: int = 401_408
    lora: Lora = field(default_factory=Lora)


@dataclass(slots=True)
class MeshShape:
    """Axes of the device mesh; one of the three may be -1: the rest of the devices.

    Attributes:
        data: copies of the parameters; 0 for one on each host (on TPUs each slice) where it fits, else one.
        fsdp: shards of the parameters and the optimizer state.
        tensor: shards of each product.
    """

    data: int = 0
    fsdp: int = -1
    tensor: int = 1
