"""Settings of the server."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from currreft_jax.config import CacheType, Precision, Sampling


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the server takes; a request beyond one of them is refused.

    Attributes:
        max_waiting: completions that may wait for a slot; a request that does not fit is answered by status 429.
        max_body_bytes: bytes of a request.
        max_images: images of a request.
        max_image_pixels: pixels of an image file, checked before it is decoded.
        max_choices: completions of a request, `n`.
        max_tokens: token limit of a completion; a larger `max_tokens` is lowered to it.
        max_prompt_tokens: tokens of a prompt, with its images.
        body_timeout_s: seconds in which the body of a request must arrive.
        timeout_s: seconds from then to the end of the answer.
    """

    max_waiting: int = 256
    max_body_bytes: int = 32 << 20
    max_images: int = 16
    max_image_pixels: int = 40_000_000
    max_choices: int = 64
    max_tokens: int = 1024
    max_prompt_tokens: int = 2048
    body_timeout_s: float = 30.0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} = {value}: choose a positive number")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model to serve, and how.

    Attributes:
        source: see `load_source`.
        name: its name in requests.
        slots: completions that are decoded together.
        segment: tokens after which waiting prompts may enter, and streams get their next text.
        precision: precision of decoding and of its caches.
        dtype: see `load_source`.
        min_pixels: see `load_source`.
        max_pixels: see `load_source`.
    """

    source: str | Path
    name: str
    slots: int
    segment: int
    precision: str
    dtype: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots = {self.slots}: choose a positive number")

    def sampling(self, limits: ServerLimits) -> Sampling:
        """Returns the settings of the sampler."""
        return Sampling(
            group_size=1,
            max_new_tokens=limits.max_tokens,
            segment=self.segment,
            ladder=(),  # requests keep coming: its batch never shrinks
            precision=Precision(self.precision),
            cache=CacheType(self.precision),
        )
