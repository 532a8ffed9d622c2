"""Converts a checkpoint: `python -m tools.convert_weights SRC DST`, and back with `--to-hf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# A conversion runs on the CPU only; it must not occupy an accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.missing import describe_error
from currreft_jax.config.output import output_path
from currreft_jax.models import hf
from currreft_jax.models.folder import copy_auxiliary_files, resolve
from currreft_jax.runtime.checkpoint import MANIFEST, atomic_folder

EPILOG = """\
examples:
  python -m tools.convert_weights Qwen/Qwen2.5-VL-3B-Instruct checkpoints/3b    for a fast start on many hosts
  python -m tools.convert_weights --to-hf checkpoints/3b exports/3b             for transformers, vLLM, SGLang

The destination appears when it is complete. An interrupted conversion leaves DST.partial, which the next one replaces.
Host memory: the model in its dtype (16.6 GB for the 7B in bf16), and 5 GB more with --to-hf.
"""


def parser() -> argparse.ArgumentParser:
    """Makes the argument parser."""
    result = CommandParser(
        prog="python -m tools.convert_weights",
        description="Converts a checkpoint to the native sharded format, or with --to-hf to Hugging Face's.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("source", metavar="SRC", help="a Hugging Face folder, a hub id or a native folder")
    result.add_argument("destination", metavar="DST", type=output_path, help="the folder to write")
    result.add_argument("--to-hf", action="store_true", help="write Hugging Face's layout, for transformers and vLLM")
    result.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of DST (default: SRC's)")
    result.add_argument(
        "--verify",
        action="store_true",
        help="compare the SHA-256 of every weight before DST appears",
    )
    return result


def convert(source: Path, destination: Path, *, to_hf: bool, dtype: str | None, verify: bool) -> None:
    """Converts a checkpoint; `destination` appears when it is complete.

    Raises:
        WeightError: with `verify`, the written weights differ from those of `source`.
    """
    with atomic_folder(destination) as folder:
        model, parameters = hf.load(source, param_dtype=dtype)
        (hf.save if to_hf else hf.save_native)(model, parameters, folder)
        copy_auxiliary_files(source, folder)
        if verify:
            del parameters
            ours, theirs = digests(folder, dtype), digests(source, dtype)
            if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
                raise hf.WeightError(f"the written weights differ from {source} in {', '.join(differing)}")
            print(f"verified: {len(ours)} weights equal those of {source}")
    if missing := sorted(
        {"tokenizer.json", "preprocessor_config.json"} - {path.name for path in destination.iterdir()}
    ):
        print(f"note: {source} has no {' and no '.join(missing)}; transformers needs them next to the weights")


def digests(folder: Path, dtype: str | None) -> dict[str, str]:
    """Computes the SHA-256 of every weight in Hugging Face's layout, from the files."""
    if (folder / MANIFEST).exists():
        return hf.digests(hf.hub_tensors(hf.load(folder, param_dtype=dtype)[1]))
    tied = hf.read_model_config(folder).tie_word_embeddings
    return hf.digests(
        (name, tensor) for name, tensor in hf.read_tensors(folder, dtype) if not (tied and name == hf.HEAD)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parser().parse_args(arguments)
    try:
        source = resolve(args.source)
        convert(source, args.destination, to_hf=args.to_hf, dtype=args.dtype, verify=args.verify)
    except (OSError, ValueError) as error:  # all errors of the package derive from these
        print(f"error: {describe_error(error)}", file=sys.stderr)
        return 1
    print(f"wrote {args.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
