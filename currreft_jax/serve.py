"""Serve a model over HTTP by OpenAI's API, to any client: an evaluation harness, `evaluate --endpoint`, curl.

  python -m currreft_jax.serve
  python -m currreft_jax.serve --model=Qwen/Qwen2.5-VL-3B-Instruct --slots=32 --max-prompt-tokens=4096
  CURRREFT_SERVE_KEY=$(cat key) python -m currreft_jax.serve --model=runs/demo/stage3 --host=0.0.0.0

Without --model, the small model of the package is served; it knows drawn scenes of coloured shapes only. Requests enter
the running batch as they come. An answer depends on the seed, the prompt and the number of the choice alone. With a key
in $CURRREFT_SERVE_KEY, every request needs it as its bearer key; without one, the server listens at this machine's own
addresses only. SIGTERM answers what is waiting, then stops. Needs the extra `serve`; see docs/serve.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.missing import describe_error
from currreft_jax.serving.settings import ServedModel, ServerLimits
from currreft_jax.world import base

KEY_VARIABLE = "CURRREFT_SERVE_KEY"
_OWN_ADDRESSES = ("127.0.0.1", "::1", "localhost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    key = os.environ.get(KEY_VARIABLE, "")
    try:
        if not key and options.host not in _OWN_ADDRESSES:
            raise ValueError(f"--host={options.host} is open to other machines: set a key in ${KEY_VARIABLE}")
        if KEY_VARIABLE in os.environ and (not key or not key.isascii() or key.strip() != key):
            raise ValueError(f"${KEY_VARIABLE} holds no key: set it to ASCII text without spaces around it")
        serve_model(options, key or None)
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        print(f"serve: {error.name} is not installed: pip install 'currreft_jax[serve]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # what the package raises for bad input
        print(f"serve: {describe_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def serve_model(options: argparse.Namespace, key: str | None) -> None:
    """Serves the model until a signal.

    Raises:
        ValueError: an option or a model that cannot be used.
        OSError: an address that cannot be listened at, or a file that cannot be read.
        ModuleNotFoundError: the extra `serve` is not installed.
    """
    limits = ServerLimits(**{field.name: getattr(options, field.name) for field in fields(ServerLimits)})
    served = ServedModel(
        source=options.model or base.checkpoint(),
        name=options.name or options.model or "currreft-base",
        slots=options.slots,
        segment=options.segment,
        precision=options.precision,
        dtype=options.dtype,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )

    from currreft_jax.runtime.compilation_cache import enable_compilation_cache
    from currreft_jax.serving.server import serve

    enable_compilation_cache()
    serve(served, limits, options.host, options.port, key, lambda line: print(f"serve: {line}", file=sys.stderr))


def _parser() -> argparse.ArgumentParser:
    limits = ServerLimits()
    parser = CommandParser(
        prog="python -m currreft_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, text: str, **options: object) -> None:
        shown = f"{text} (default %(default)s)" if options.get("default") is not None else text
        parser.add_argument(name, help=shown, **options)  # pyright: ignore[reportArgumentType]

    add("--model", "hub id, model folder, or a run's stage (default: the package's small model)", metavar="SOURCE")
    add("--name", "name of the model in requests (default: SOURCE, or currreft-base)")
    add("--host", "address to listen at", default="127.0.0.1")
    add("--port", "port to listen at; 0 for any", type=int, default=8000)
    add("--slots", "completions that are decoded together", type=int, default=16, metavar="N")
    add("--segment", "tokens between two looks at the queue", type=int, default=32, metavar="N")
    add("--precision", "of decoding", choices=("bfloat16", "float32"), default="bfloat16")
    add("--dtype", "precision to load the model in", choices=("float32", "bfloat16", "float16"))
    add("--min-pixels", "enlarge smaller images to this area (default: the checkpoint's)", type=int, metavar="N")
    add("--max-pixels", "shrink larger images to this area (default: the checkpoint's)", type=int, metavar="N")
    for name, text in _LIMITS.items():
        default = getattr(limits, name)
        add(f"--{name.replace('_', '-')}", text, type=type(default), default=default, metavar="N")
    return parser


_LIMITS = {
    "max_prompt_tokens": "tokens of a prompt with its images; every slot has room for so many",
    "max_tokens": "token limit of an answer; requests for more get so many",
    "max_waiting": "completions that may wait for a slot; the next request is answered by status 429",
    "max_choices": "completions of a request",
    "max_images": "images of a request",
    "max_image_pixels": "pixels of an image file",
    "max_body_bytes": "bytes of a request",
    "body_timeout_s": "seconds in which a request must arrive",
    "timeout_s": "seconds in which it must be answered",
}


if __name__ == "__main__":
    sys.exit(main())
