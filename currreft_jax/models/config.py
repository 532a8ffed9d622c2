"""Configuration of a Qwen2.5-VL, read from and written to Hugging Face's `config.json`. Loads no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

MODEL_TYPE = "qwen2_5_vl"
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class UnsupportedModel(ValueError):
    """The checkpoint is not a Qwen2.5-VL that this package supports."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Configuration of the vision tower.

    Defaults are those of Hugging Face's class, for files that omit fields with default values (as written by
    transformers 4.49). The published checkpoints state every field.
    """

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 3584
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3
    tokens_per_second: int = 4

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patches_per_unit(self) -> int:
        """Patches of a merged unit, which becomes one token."""
        return self.spatial_merge_size**2

    @property
    def window_side(self) -> int:
        """Side of an attention window, in merged units."""
        return self.window_size // self.patch_size // self.spatial_merge_size

    @property
    def patches_per_slot(self) -> int:
        """Patches of a whole attention window."""
        return self.window_side**2 * self.patches_per_unit

    @property
    def values_per_patch(self) -> int:
        """Values of one patch of a still image."""
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Configuration of the model: the decoder, the vision tower and the special tokens."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_position_embeddings: int
    max_window_layers: int
    vision: VisionConfig
    dtype: str = "bfloat16"
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    vision_token_id: int = 151654
    image_token_id: int = 151655
    video_token_id: int = 151656

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Default stop tokens, end of turn and end of text, for checkpoints without `generation_config.json`."""
        return self.eos_token_id, self.bos_token_id

    @property
    def forbidden_tokens(self) -> tuple[int, ...]:
        """Image and video special tokens, which are never sampled."""
        return (
            self.vision_start_token_id,
            self.vision_end_token_id,
            self.vision_token_id,
            self.image_token_id,
            self.video_token_id,
        )

    def __post_init__(self) -> None:
        _check_types(self)
        _check_types(self.vision)
        vision = self.vision
        rules = {
            "every special token must be in the vocabulary": all(
                0 <= value < self.vocab_size for name, value in asdict(self).items() if name.endswith("_token_id")
            ),
            "num_attention_heads must divide hidden_size": self.hidden_size % self.num_attention_heads == 0,
            "num_key_value_heads must divide num_attention_heads": (
                self.num_attention_heads % self.num_key_value_heads == 0
            ),
            "mrope_section must have three entries that sum to half the head size": (
                len(self.mrope_section) == 3 and 2 * sum(self.mrope_section) == self.head_dim
            ),
            "vision_config.hidden_size / num_heads must be a multiple of 4": (
                vision.hidden_size % (4 * vision.num_heads) == 0
            ),
            "vision_config.out_hidden_size must equal hidden_size": vision.out_hidden_size == self.hidden_size,
            "vision_config.window_size must be a number of whole merged units": (
                vision.window_size % (vision.patch_size * vision.spatial_merge_size) == 0
            ),
            "vision_config.temporal_patch_size must be 2": vision.temporal_patch_size == 2,
            "vision_config.in_channels must be 3": vision.in_channels == 3,
            "vision_config.fullatt_block_indexes must be indices of blocks": all(
                0 <= index < vision.depth for index in vision.fullatt_block_indexes
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise UnsupportedModel(f"{rule}; got {self}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Parses the flat layout of the published files or the nested layout of later transformers.

        Args:
            config: the parsed JSON.
            source: name of the file in error messages.

        Raises:
            UnsupportedModel: another architecture, a quantised checkpoint, or an unsupported setting.
        """
        if (model_type := config.get("model_type")) != MODEL_TYPE:
            raise UnsupportedModel(f"{source}: model_type {model_type!r} is not supported, only {MODEL_TYPE!r}")
        nested = {name: config.get(name, {}) for name in ("text_config", "vision_config")}
        nested["quantization_config"] = config.get("quantization_config") or {}
        for name, value in nested.items():
            if not isinstance(value, Mapping):
                raise UnsupportedModel(f"{source}: {name} must be an object, not {value!r}")
        if quantization := nested["quantization_config"]:
            raise UnsupportedModel(
                f"{source}: the checkpoint is quantised ({quantization.get('quant_method', 'unknown method')});"
                " use the unquantised one of the same model"
            )
        text, vision = {**config, **nested["text_config"]}, dict(nested["vision_config"])
        if "in_chans" in vision:
            vision["in_channels"] = vision.pop("in_chans")
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type"))
        unsupported = {
            "hidden_act": text.get("hidden_act", "silu") != "silu" and text["hidden_act"],
            "vision_config.hidden_act": vision.get("hidden_act", "silu") != "silu" and vision["hidden_act"],
            "use_sliding_window": text.get("use_sliding_window", False),
            "rope type": (kind not in ("mrope", "default") or "mrope_section" not in rope) and (rope or "none"),
        }
        for name, value in unsupported.items():
            if value:
                raise UnsupportedModel(f"{source}: {name} = {value} is not supported")
        text["mrope_section"] = _tuple(rope["mrope_section"])
        text["rope_theta"] = rope.get("rope_theta", text.get("rope_theta"))
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        text["dtype"] = config.get("dtype", config.get("torch_dtype", text.get("dtype", "bfloat16")))
        if "fullatt_block_indexes" in vision:
            vision["fullatt_block_indexes"] = _tuple(vision["fullatt_block_indexes"])
        text["vision"] = VisionConfig(**{f.name: vision[f.name] for f in fields(VisionConfig) if f.name in vision})
        known = {f.name: text[f.name] for f in fields(cls) if text.get(f.name) is not None}
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in known]:
            raise UnsupportedModel(f"{source}: {', '.join(missing)} missing")
        try:
            return cls(**known)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{source}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """Returns the flat layout, which transformers 4.49, 4.57 and 5 read; only 5 reads a nested one."""
        flat = asdict(self)
        vision, dtype, section = flat.pop("vision"), flat.pop("dtype"), flat.pop("mrope_section")
        vision["in_chans"] = vision.pop("in_channels")
        vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": MODEL_TYPE,
            **flat,
            "rope_scaling": {"type": "mrope", "mrope_section": list(section)},
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "sliding_window": 32768,
            "use_cache": True,
            "use_sliding_window": False,
            "torch_dtype": dtype,
            "vision_config": {
                **vision,
                "hidden_act": "silu",
                "model_type": MODEL_TYPE,
                "spatial_patch_size": vision["patch_size"],
            },
        }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_types(config: VisionConfig | ModelConfig) -> None:
    """Checks the type of every field, and that sizes are positive integers: a JSON file can hold anything."""
    for name, value in asdict(config).items():
        integers = value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()
        may_be_zero = name.endswith(("_token_id", "_indexes", "tie_word_embeddings"))
        types: dict[str, Any] = {
            **dict.fromkeys(("rms_norm_eps", "rope_theta"), int | float),
            **dict.fromkeys(("mrope_section", "fullatt_block_indexes"), tuple),
            "tie_word_embeddings": bool,
            "vision": dict,
            "dtype": str,
        }
        expected = types.get(name, int)
        if (
            not isinstance(value, expected)
            or (isinstance(value, bool) and expected is not bool)
            or not all(isinstance(integer, int) and (integer > 0 or may_be_zero) for integer in integers)
        ):
            raise UnsupportedModel(f"{name} = {value!r} is not a size or setting of a Qwen2.5-VL")


_7B = ModelConfig(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    tie_word_embeddings=False,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(16, 24, 24),
    max_position_embeddings=128000,
    max_window_layers=28,
    vision=VisionConfig(hidden_size=1280, tokens_per_second=2),
)


def _published(*, hidden_size: int, vision_intermediate_size: int = 3420, **changes: Any) -> ModelConfig:
    """Makes a published model from its differences to the 7B."""
    vision = replace(_7B.vision, out_hidden_size=hidden_size, intermediate_size=vision_intermediate_size)
    return replace(_7B, hidden_size=hidden_size, vision=vision, **changes)


PUBLISHED = {
    "3b": _published(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_window_layers=70,
    ),
    "7b": _7B,
    "32b": _published(
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        max_window_layers=64,
        vision_intermediate_size=3456,
    ),
    "72b": _published(
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_window_layers=80,
        vision_intermediate_size=3456,
    ),
}
