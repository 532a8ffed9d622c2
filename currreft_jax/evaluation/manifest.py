"""Manifests: what the answers of a model to a suite depend on, in a JSON file beside them. Loads no JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from currreft_jax.config import Evaluation, ImageCondition, Source
from currreft_jax.data.prompts import load_template
from currreft_jax.evaluation import verdicts
from currreft_jax.evaluation.benchmarks.prompts import PROMPT_VERSION
from currreft_jax.evaluation.suites import LoadedSuite
from currreft_jax.runtime.digests import hash_files

HASH_BYTES = 16
_CHANGES_NOTHING = ("workers",)  # of the settings of math-verify
_UNCOMPARED = ("leaks",)


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
    maths = {k: v for k, v in dataclasses.asdict(evaluation.maths).items() if k not in _CHANGES_NOTHING}
    return {
        **facts,
        "rows": {
            "suite": suite.settings.name,
            "domain": suite.settings.domain.value,
            **rows_facts(suite),
        },
        "images": images.value,
        **sampling_facts(evaluation),
        **_benchmark_prompts(suite),
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


def rows_facts(suite: LoadedSuite) -> dict[str, Any]:
    """Returns number, files and ids of the rows of a suite."""
    return {
        "count": len(suite),
        "excluded": suite.excluded,
        "files": [
            {
                **{"file": source.file, "sample": source.sample},
                "hash": hash_files(Path(source.file), size=HASH_BYTES),
                **_row_defaults(source),
            }
            for source in suite.settings.sources
        ],
        "ids": _hash("\0".join(suite.ids)),
    }


def sampling_facts(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the prompts and the decoding on which answers depend."""
    sampling, template = evaluation.sampling, load_template(evaluation.template)
    return {
        "prompts": {"template": evaluation.template, "hash": _hash(repr(template))},
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
    }


def _row_defaults(source: Source) -> dict[str, str]:
    """Returns what a source says of rows that do not say it themselves."""
    defaults = {
        "image_root": source.image_root,
        "kind": source.kind.value if source.kind else "",
        "task": source.task.value if source.task else "",
    }
    return {name: value for name, value in defaults.items() if value}


def open_manifest(answers: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest of an answers file, or compares it with the one that is there.

    Raises:
        ValueError: the answers there are of other settings, which the message names; or there is no manifest.
    """
    path = manifest_path(answers)
    if not path.exists() and answers.exists():
        raise ValueError(f"{answers} has no manifest beside it: remove it, or write to another --out")
    if path.exists():
        refuse_changes(path, manifest, _UNCOMPARED)
    else:
        write_json(path, manifest)


def refuse_changes(path: Path, manifest: dict[str, Any], uncompared: Sequence[str]) -> None:
    """Compares a manifest with the one in a file.

    Raises:
        ValueError: they differ in other keys than `uncompared`; the message names these.
    """
    before, now = json.loads(path.read_text("utf-8")), json.loads(json.dumps(manifest))
    changed = [
        line
        for name in sorted(before.keys() | now.keys())
        if name not in uncompared
        for line in _changes(name, before.get(name), now.get(name))
    ]
    if changed:
        raise ValueError(f"{path}: {'; '.join(changed)}: write to another --out, or remove the old answers")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.replace(path)


def _changes(name: str, before: Any, now: Any) -> Iterator[str]:
    """Describes what differs between two JSON values, by its name."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name} was {json.dumps(before)}, and is {json.dumps(now)}"


def _benchmark_prompts(suite: LoadedSuite) -> dict[str, Any]:
    """Returns what a benchmark asks, and of which file, as `prompts`; empty for files of rows."""
    if not (benchmark := suite.benchmark):
        return {}
    facts = {
        "benchmark": benchmark.name.value,
        "published": benchmark.published,
        "md5": benchmark.md5,
        "version": PROMPT_VERSION,
        "instruction": suite.settings.instruction,
        "without_image": list(benchmark.without_image),
    }
    return {"prompts": facts}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()
