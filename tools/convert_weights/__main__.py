"""Converts a checkpoint: `python -m tools.convert_weights SRC DST`, and back with `--to-hf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# The weights pass through the host only; a conversion must not take an accelerator from a run beside it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from currreft_jax.checkpoint import MANIFEST, atomic_folder
from currreft_jax.models import hf
from currreft_jax.models.folder import copy_auxiliary_files, resolve

EPILOG = """\
examples:
  python -m tools.convert_weights Qwen/Qwen2.5-VL-3B-Instruct checkpoints/3b    for a fast start on many hosts
  python -m tools.convert_weights --to-hf checkpoints/3b exports/3b             for transformers, vLLM, SGLang

The destination appears only when it is complete; an interrupted conversion leaves DST.partial, which the next one
replaces. Host memory: the whole model in its own dtype (16.6 GB for the 7B in bf16), and with --to-hf 5 GB more.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m tools.convert_weights",
        description="Converts a Hugging Face checkpoint to the native sharded form, or either form to Hugging Face's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("source", metavar="SRC", help="a Hugging Face folder, a hub id or a native folder")
    result.add_argument("destination", metavar="DST", type=Path, help="the folder to make")
    result.add_argument("--to-hf", action="store_true", help="write a folder that transformers and vLLM load")
    result.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the result; SRC's by default")
    result.add_argument(
        "--verify",
        action="store_true",
        help="before DST appears, read it again and compare the SHA-256 of every weight",
    )
    return result


def convert(source: Path, destination: Path, *, to_hf: bool, dtype: str | None, verify: bool) -> None:
    """Writes `destination` whole or not at all.

    Raises:
        WeightError: what was written and read again is not what `source` holds.
    """
    with atomic_folder(destination) as folder:
        model, parameters = hf.load(source, param_dtype=dtype)
        (hf.save if to_hf else hf.save_native)(model, parameters, folder)
        copy_auxiliary_files(source, folder)
        if verify:
            del parameters
            ours, theirs = digests(folder, dtype), digests(source, dtype)
            if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
                raise hf.WeightError(f"what was written differs from {source} in {', '.join(differing)}")
            print(f"verified: {len(ours)} weights are those of {source}")
    if missing := sorted(
        {"tokenizer.json", "preprocessor_config.json"} - {path.name for path in destination.iterdir()}
    ):
        print(f"note: {source} has no {' and no '.join(missing)}; transformers wants them beside the weights")


def digests(folder: Path, dtype: str | None) -> dict[str, str]:
    """SHA-256 of every weight in Hugging Face's layout, read from the files."""
    if (folder / MANIFEST).exists():
        return hf.digests(hf.hub_tensors(hf.load(folder, param_dtype=dtype)[1]))
    tied = hf.read_config(folder).tie_word_embeddings
    return hf.digests(
        (name, tensor) for name, tensor in hf.read_tensors(folder, dtype) if not (tied and name == hf.HEAD)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parser().parse_args(arguments)
    try:
        source = resolve(args.source)
        convert(source, args.destination, to_hf=args.to_hf, dtype=args.dtype, verify=args.verify)
    except (OSError, ValueError) as error:  # every refusal of the package is one of them
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
