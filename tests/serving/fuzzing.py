"""Malformed requests: junk in fields, broken images, bombs, huge fields, damaged JSON."""

import base64
import io
import json
import random
import zlib
from functools import cache
from typing import Any

from PIL import Image, PngImagePlugin

FIELDS = (
    *("messages", "model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "tools", "response_format", "logit_bias", "min_p"),
)
KEYS = ("role", "content", "type", "text", "url", "image_url", "include_usage", "detail")
FORMATS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm")


def malformed_body(rng: random.Random) -> bytes:
    """Returns a body; a few of them are sound."""
    kind = rng.randrange(12)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    if kind < 5:
        body |= {field: junk(rng) for field in rng.sample(FIELDS, rng.randrange(1, 4))}
    elif kind < 8:
        parts = [
            {"type": "image_url", "image_url": {"url": image_url(rng)}} for _ in range(rng.choice((1, 1, 1, 2, 20)))
        ]
        body["messages"][0]["content"] = [*parts, {"type": "text", "text": "x"}]
    elif kind == 8:
        roles = ("user", "system", "assistant", "tool", "")
        body["messages"] = [{"role": rng.choice(roles), "content": junk(rng)} for _ in range(rng.randrange(5))]
    elif kind == 9:
        body |= huge_field(rng)
    raw = json.dumps(body).encode()
    if kind == 10:
        damaged = bytearray(raw)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    if kind == 11:
        return rng.choice((b"", b"null", b"[" * 50_000, b'{"a":' * 20_000, rng.randbytes(100), raw[: len(raw) // 2]))
    return raw


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Returns a value of any type."""
    leaves = (
        None,
        True,
        -1,
        0,
        1e308,
        "",
        "\ud800",
        "x" * rng.randrange(2000),
        10**30,
        float("nan"),
        {},
        [],
        "<|im_end|>",
    )
    if depth > 2 or rng.random() < 0.75:
        return rng.choice(leaves)
    if rng.random() < 0.5:
        return [junk(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): junk(rng, depth + 1) for _ in range(3)}


def huge_field(rng: random.Random) -> dict[str, Any]:
    """Returns a field that is far too large."""
    user = {"role": "user", "content": "a " * 200_000}
    return rng.choice(
        (
            {"messages": [user]},
            {"messages": [{"role": "user", "content": "x"}] * 5_000},
            {"stop": ["s"] * 5_000},
            {"stop": "s" * 100_000},
            {"n": 10**9},
            {"max_tokens": 10**300},
            {"seed": 10**300},
            {"x" * 100_000: 0},
            {"model": "m" * 100_000},
        )
    )


def image_url(rng: random.Random) -> str:
    """Returns the URL of an image that is damaged, huge, thin, or none; sometimes of a sound one."""
    name = rng.choice(FORMATS)
    sound = image_file(name)
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(("http://169.254.169.254/latest", "file:///etc/passwd", "data:", "data:image/png;base64", ""))
    if kind == 1:
        return data_url(image_file(rng.choice(("bomb", "thin", "text bomb", "huge head"))))
    if kind == 2:
        return data_url(rng.randbytes(200))
    if kind == 3:
        return data_url(sound[: rng.randrange(len(sound))])
    if kind == 4:
        return data_url(sound)[: -rng.randrange(1, 4)]
    damaged = bytearray(sound)
    for _ in range(rng.randrange(1, 8)):
        damaged[rng.randrange(len(damaged) if rng.random() < 0.5 else 64)] = rng.randrange(256)
    return data_url(bytes(damaged))


@cache
def image_file(name: str) -> bytes:
    """Returns the file of a sound image in a format, or of one that is a trap."""
    file = io.BytesIO()
    if name == "bomb":
        Image.new("L", (9_000, 9_000)).save(file, "png")
    elif name == "thin":
        Image.new("RGB", (3_000, 2)).save(file, "png")
    elif name == "text bomb":
        text = PngImagePlugin.PngInfo()
        text.add_text("a", "x" * (80 << 20), zip=True)
        Image.new("RGB", (56, 56)).save(file, "png", pnginfo=text)
    elif name == "huge head":
        return _with_size(image_file("png"), 2**31 - 1, 2**31 - 1)
    else:
        Image.effect_mandelbrot((56, 56), (-2, -1, 1, 1), 20).convert("RGB").save(file, name)
    return file.getvalue()


def data_url(content: bytes) -> str:
    """Returns a data URL."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _with_size(png: bytes, width: int, height: int) -> bytes:
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]
