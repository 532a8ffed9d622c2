"""The manifest of a job: what its answers and judgements depend on, and what its rows were compared with."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from currreft_jax.config import Rejection, as_evaluation, source_suites
from currreft_jax.evaluation.manifest import refuse_changes, rows_facts, sampling_facts, write_json
from currreft_jax.rejection.candidates import CandidateSource

MANIFEST = "manifest.json"
# These may change while a job goes on: what is kept depends on them, but no answer and no judgement does.
_UNCOMPARED = ("settings", "leaks")
_SHOWN_LOCATIONS = 20


def keep_manifest(
    settings: Rejection,
    sources: list[CandidateSource],
    compared: dict[str, dict[str, int]],
    model: dict[str, Any],
    judge: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Compares the manifest with that of the answers in the folder, writes it, and returns it.

    Args:
        settings: all settings.
        sources: rows of the sources.
        compared: suite -> what of it the rows were compared with.
        model: facts of the model.
        judge: facts of the judge.
        out: folder of the job.

    Raises:
        ValueError: the answers there are of other settings, which the message names.
    """
    evaluation = as_evaluation(settings, source_suites(settings))
    rewards = dataclasses.asdict(settings.rewards)
    del rewards["maths"]["workers"]
    manifest = {
        **model,
        "sources": {source.settings.name: rows_facts(source.suite) for source in sources},
        **sampling_facts(evaluation),
        "judge": {name: fact for name, fact in judge.items() if name != "url"},  # a server may move
        "rules": {**rewards, "math-verify": version("math-verify")},
        "currreft_jax": version("currreft_jax"),
        "settings": dataclasses.asdict(settings),
        "leaks": {"suites": compared, "dropped": {source.settings.name: _dropped(source) for source in sources}},
    }
    manifest = json.loads(json.dumps(manifest, default=lambda member: member.value))
    path = out / MANIFEST
    if path.exists():
        refuse_changes(path, manifest, _UNCOMPARED)
    write_json(path, manifest)
    return manifest


def read_manifest(out: Path) -> dict[str, Any]:
    """Reads the manifest of a job.

    Raises:
        FileNotFoundError: there is no job.
    """
    path = out / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{out} holds no job to replay: sample and judge answers first, without --replay")
    return json.loads(path.read_text("utf-8"))


def refuse_other_rows(sources: list[CandidateSource], manifest: dict[str, Any], out: Path) -> None:
    """Refuses to select among other rows than those of a job.

    Raises:
        ValueError: naming the source.
    """
    for source in sources:
        name, facts = source.settings.name, json.loads(json.dumps(rows_facts(source.suite)))
        if manifest["sources"].get(name) != facts:
            raise ValueError(f"{out / MANIFEST}: the rows of source {name} are not those that were answered")


def _dropped(source: CandidateSource) -> dict[str, Any]:
    locations = [f"{location}: {reason}" for location, reason in source.dropped]
    return {"rows": len(source.suite), **source.dropped_counts(), "first": locations[:_SHOWN_LOCATIONS]}
