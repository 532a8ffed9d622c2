"""Manifests: what the answers of a model to a suite depend on, in a JSON file beside them. Loads no JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from currreft_jax.config import Evaluation, ImageCondition
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation import verdicts
from currreft_jax.evaluation.benchmarks.prompts import PROMPT_VERSION
from currreft_jax.evaluation.suites import LoadedSuite
from currreft_jax.runtime.digests import hash_files

HASH_BYTES = 16
_ROW_DEFAULTS = ("image_root", "kind", "task")  # of a source; a manifest has those that are set
_CHANGES_NOTHING = ("workers",)  # of the settings of math-verify


def answers_path(out: Path, model: str, suite: str, images: ImageCondition) -> Path:
    """Returns the path of an answers file."""
    suffix = "" if images is ImageCondition.ORIGINAL else f".{images.value}"
    return out / model / f"{suite}{suffix}.jsonl"


def manifest_path(answers: Path) -> Path:
    """Returns the path of an answers file's manifest."""
    return answers.with_suffix(".manifest.json")


def make_manifest(
    evaluation: Evaluation, suite: LoadedSuite, images: ImageCondition, facts: dict[str, Any], leaks: int | str
) -> dict[str, Any]:
    """Returns the manifest of an answers file.

    Args:
        evaluation: all settings.
        suite: the suite.
        images: images that are shown.
        facts: of the model: `model`, with its name, path and hash; `pixels`, the bounds of its images' areas; `dtype`.
        leaks: number of rows that the model was trained on, or why it is unknown.
    """
    sampling, template = evaluation.sampling, load_template(evaluation.template)
    maths = {k: v for k, v in dataclasses.asdict(evaluation.maths).items() if k not in _CHANGES_NOTHING}
    return {
        **facts,
        "rows": {
            "suite": suite.settings.name,
            "domain": suite.settings.domain.value,
            "count": len(suite),
            "excluded": suite.excluded,
            "files": [
                {
                    **{"file": source.file, "sample": source.sample},
                    "hash": hash_files(Path(source.file), size=HASH_BYTES),
                    **{name: str(value) for name in _ROW_DEFAULTS if (value := dataclasses.asdict(source)[name])},
                }
                for source in suite.settings.sources
            ],
            "ids": _hash("\0".join(suite.ids)),
        },
        "images": images.value,
        "prompts": _benchmark_prompts(suite) or {"template": evaluation.template, "hash": _hash(repr(template))},
        "decoding": {
            "samples": sampling.group_size,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "precision": sampling.precision.value,
            "cache": sampling.cache.value,
            "seed": evaluation.seed,
        },
        "scorer": {
            "name": evaluation.scorer.value,
            "version": verdicts.VERSION,
            "aliases": evaluation.aliases,
            "maths": maths,
            "math-verify": version("math-verify"),
        },
        "leaks": leaks,
        "currreft_jax": version("currreft_jax"),
    }


def open_manifest(answers: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of an answers file, or compares it with the one that is there.

    Raises:
        ValueError: the answers there are of other settings, which the message names; or there is no manifest.
    """
    path = manifest_path(answers)
    now = json.loads(json.dumps(manifest))
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        changed = [
            f"{name} was {json.dumps(before.get(name))}, and is {json.dumps(now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name != "leaks"
        ]
        if changed:
            raise ValueError(f"{path}: {'; '.join(changed)}: write to another --out, or remove the old answers")
        return
    if answers.exists():
        raise ValueError(f"{answers} has no manifest beside it: remove it, or write to another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(now, indent=2) + "\n", "utf-8")
    partial.replace(path)


def _benchmark_prompts(suite: LoadedSuite) -> dict[str, Any]:
    """Returns what a benchmark asks, and of which file; empty for files of rows."""
    if not (benchmark := suite.benchmark):
        return {}
    return {
        "benchmark": benchmark.name.value,
        "published": benchmark.published,
        "md5": benchmark.md5,
        "version": PROMPT_VERSION,
        "instruction": suite.settings.instruction,
        "without_image": list(benchmark.without_image),
    }


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()
