"""JAX's compilation cache is on by default, in the user's cache folder, and every program turns it on."""

from pathlib import Path

import jax
import pytest

import currreft_jax
from currreft_jax.runtime import compilation_cache
from currreft_jax.runtime.compilation_cache import VARIABLE, default_folder, enable_compilation_cache


@pytest.fixture
def updates(monkeypatch) -> dict[str, str]:
    """The settings of JAX that are updated, without their effect."""
    changed: dict[str, str] = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    return changed


def test_the_cache_is_on_by_default_in_the_users_cache_folder(tmp_path, monkeypatch, updates):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    enable_compilation_cache()
    (folder,) = tmp_path.glob("currreft_jax/xla/*")
    assert updates == {"jax_compilation_cache_dir": str(folder)}
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_folder().is_relative_to(tmp_path / "home" / ".cache" / "currreft_jax")


@pytest.mark.parametrize("value", ["", "/shared/xla"])
def test_the_environment_names_another_folder_or_none(monkeypatch, updates, value):
    monkeypatch.setenv(VARIABLE, value)
    enable_compilation_cache()
    assert updates == {}


def test_processors_with_other_features_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for features in ("flags\t: fpu avx2\n", "flags\t: fpu avx512f\n"):
        monkeypatch.setattr(Path, "read_text", lambda _, features=features: features)
        folders.add(default_folder())
    assert len(folders) == 2


def test_a_folder_that_cannot_be_written_is_named_and_the_program_runs_without(tmp_path, monkeypatch, updates, capsys):
    (tmp_path / "file").touch()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    enable_compilation_cache()
    assert updates == {}
    assert f"set {VARIABLE} to a folder" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["train", "generate", "plan"])
def test_every_program_that_compiles_turns_it_on(program):
    source = (Path(currreft_jax.__file__).parent / f"{program}.py").read_text()
    assert f"{compilation_cache.enable_compilation_cache.__name__}()" in source
