"""Files that are not there: errors in words, with the nearest path."""

import os
from pathlib import Path

import pytest

from currreft_jax.config.missing import describe_error, describe_missing
from currreft_jax.models.folder import resolve
from currreft_jax.report import __main__ as report
from currreft_jax.runtime.multihost import exit_refused

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("runs/demo", "train", "test"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train" / "open.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("train/opn.jsonl", "; nearest: train/open.jsonl"),
        ("trian/open.jsonl", "; nearest: train/open.jsonl"),
        ("trian/*.jsonl", "; nearest: train/*.jsonl"),
        ("trian/judge.jsonl", "; nearest: train"),
        ("zzz/open.jsonl", "; there is no folder zzz"),
        ("train/zzz", ""),
        ("train/open.jsonl/zzz", ""),
        ("currreft_jax/world/base", f"; nearest: {ROOT / 'currreft_jax/world/base'}"),
    ],
)
def test_the_nearest_path_is_named(folder, path, hint):
    assert describe_missing(path) == f"there is no file {path} in {folder}{hint}"
    assert describe_missing(folder / path).startswith(f"there is no file {folder / path}")


def test_errors_about_files_are_words_without_a_number(folder):
    with pytest.raises(
        SystemExit, match=r"^train: there is no file train/opn\.jsonl in .*; nearest: train/open\.jsonl$"
    ):
        exit_refused("train", FileNotFoundError(2, os.strerror(2), "train/opn.jsonl"))
    assert describe_error(IsADirectoryError(21, os.strerror(21), "train")) == "train: Is a directory"
    assert describe_error(ValueError("text")) == "text" and describe_error(OSError("text")) == "text"


def test_a_misspelt_run_names_the_nearest(folder):
    with pytest.raises(SystemExit, match=r"^report: there is no folder runs/dmeo in .*; nearest: runs/demo$"):
        report.main(["runs/dmeo"])
    with pytest.raises(SystemExit, match=r"there is no folder runs/dem in .*; nearest: runs/demo$"):
        report.main(["runs/demo", "--compare", "runs/dem"])


def test_a_model_of_the_repository_is_named_by_its_whole_path_elsewhere(folder):
    (folder / "checkpoint").mkdir()
    whole = ROOT / "currreft_jax" / "world" / "base"
    with pytest.raises(FileNotFoundError, match=f"id of a model on the hub .*; nearest: {whole}$"):
        resolve("currreft_jax/world/base")
    with pytest.raises(FileNotFoundError, match=r"\./chekpoint is neither a folder nor .*; nearest: checkpoint$"):
        resolve("./chekpoint")
