"""A run's checkpoints: complete or refused, the latest kept."""

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.runtime import checkpoint
from currreft_jax.runtime.checkpoint import Checkpoints, DamagedCheckpoint
from currreft_jax.runtime.sharding import make_mesh


def tree(value: float = 0.0) -> dict:
    return {"a": jnp.arange(64, dtype=jnp.float32).reshape(8, 8) + value, "b": {"c": jnp.full(3, value, jnp.float32)}}


def abstract(shardings=None) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings or x.sharding), tree())


def fill(folder: Path, *steps: int, keep: int = 9, scores: dict[int, float] | None = None) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            items = {"params": tree(step), "more": tree(-step)}
            checkpoints.save(step, items, {"row": step}, score=(scores or {}).get(step))


def test_latest_steps_are_kept_and_restored(tmp_path):
    fill(tmp_path / "c", 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3", "4"]
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        step, items, metadata = checkpoints.restore({"params": abstract()})
    assert (step, metadata) == (4, {"row": 4})
    jax.tree.map(np.testing.assert_array_equal, items["params"], tree(4))


def test_best_step_is_kept_with_the_latest(tmp_path):
    fill(tmp_path / "c", 1, 2, 3, 4, keep=1, scores={1: 0.1, 2: 0.9, 3: -0.2, 4: 0.3})
    fill(tmp_path / "c", 5, keep=1, scores={5: 0.5})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "5"]


def test_a_score_is_the_best_if_it_is_above_those_of_all_saved_steps(tmp_path):
    def best(*scores: float) -> list[bool]:
        with Checkpoints(tmp_path / "c", 1) as checkpoints:
            return [checkpoints.is_best(score) for score in scores]

    assert best(-1.0) == [True]
    fill(tmp_path / "c", 1, 2, 3, 4, keep=1, scores={1: 0.1, 2: 0.9, 3: -0.2})
    assert best(0.5, 0.9, 0.91) == [False, False, True]
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        checkpoints.save(5, {"params": tree(), "more": tree()}, {}, score=0.95)
        assert not checkpoints.is_best(0.93)
    flip_a_bit(tmp_path / "c" / "5")
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        assert not checkpoints.is_best(0.93)
        checkpoints.restore({"params": abstract(), "more": abstract()})  # sets step 5 aside
        assert checkpoints.is_best(0.93)


def test_a_step_without_a_score_is_saved_without_a_warning_and_is_never_the_best(tmp_path, caplog):
    fill(tmp_path / "c", 1, 2, 3, keep=1, scores={1: -5.0})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "3"]
    assert "tracked_metric" not in caplog.text


def copy_while_written(folder: Path, copy: Path) -> None:
    """Copies a folder in which files come and go."""
    for _ in range(100):
        with suppress(shutil.Error, FileNotFoundError):
            shutil.copytree(folder, copy)
            return
        shutil.rmtree(copy, ignore_errors=True)
        time.sleep(0.02)
    pytest.fail(f"{folder} does not settle")


def test_a_save_waits_for_no_checksum_and_a_kill_meanwhile_leaves_the_step_before(tmp_path, monkeypatch):
    fill(tmp_path / "c", 1)
    computed, start = threading.Event(), checkpoint.start_checksums

    def start_checksums(tree):
        fetch = start(tree)
        return lambda: computed.wait(20) and fetch()

    monkeypatch.setattr(checkpoint, "start_checksums", start_checksums)
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        checkpoints.save(2, {"params": tree(2), "more": tree()}, {})
        assert not computed.is_set()
        copy_while_written(tmp_path / "c", tmp_path / "killed")  # what lies there is what a killed process leaves
        computed.set()
    for folder, latest in ((tmp_path / "killed", 1), (tmp_path / "c", 2)):
        with Checkpoints(folder, 9) as checkpoints:
            step, items, _ = checkpoints.restore({"params": abstract(), "more": abstract()})
        assert step == latest
        jax.tree.map(np.testing.assert_array_equal, items["params"], tree(latest))


def test_arrays_may_be_donated_once_a_save_returns(tmp_path):
    items = jax.tree.map(lambda x: x + 0, tree(1))
    overwrite = jax.jit(lambda items: jax.tree.map(lambda x: -x, items), donate_argnums=0)
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        checkpoints.save(1, {"params": items}, {})
        overwrite(items)
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        _, found, _ = checkpoints.restore({"params": abstract()})
    jax.tree.map(np.testing.assert_array_equal, found["params"], tree(1))


def test_an_empty_folder_restores_nothing(tmp_path):
    with Checkpoints(tmp_path / "c", 1) as checkpoints:
        assert checkpoints.restore({"params": abstract()}) is None


def test_a_step_is_restored_onto_another_mesh(tmp_path):
    fill(tmp_path / "c", 1)
    mesh = make_mesh(fsdp=8)
    sharding = NamedSharding(mesh, P("fsdp"))
    wanted = abstract(NamedSharding(mesh, P()))
    wanted["a"] = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
    with Checkpoints(tmp_path / "c", 1) as checkpoints:
        _, items, _ = checkpoints.restore({"params": wanted})
    assert items["params"]["a"].sharding == sharding
    np.testing.assert_array_equal(items["params"]["a"], tree(1)["a"])


def test_a_step_is_never_written_twice(tmp_path):
    fill(tmp_path / "c", 2)
    with Checkpoints(tmp_path / "c", 9) as checkpoints, pytest.raises(ValueError, match="holds step 1 or a later one"):
        checkpoints.save(1, {"params": tree()}, {})


def flip_a_bit(step: Path) -> None:
    large = max((path for path in step.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(large.read_bytes())
    content[len(content) // 2] ^= 1
    large.write_bytes(content)


def cut_off(step: Path) -> None:
    for path in step.rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-20])


def empty(step: Path) -> None:
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def damage_manifest(step: Path) -> None:
    (step / "manifest" / "metadata").write_text("{")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, empty, damage_manifest])
def test_a_damaged_step_is_reported_and_the_previous_one_restored(tmp_path, damage, capsys):
    fill(tmp_path / "c", 1, 2)
    damage(tmp_path / "c" / "2")
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        step, items, _ = checkpoints.restore({"params": abstract(), "more": abstract()})
        assert step == 1
        jax.tree.map(np.testing.assert_array_equal, items["params"], tree(1))
        assert f"{tmp_path}/c/2" in capsys.readouterr().err
        checkpoints.save(2, {"params": tree(7), "more": tree()}, {})  # the damaged step is out of the way
    with Checkpoints(tmp_path / "c", 9) as checkpoints:
        assert checkpoints.restore({"params": abstract()})[0] == 2


@pytest.mark.parametrize("item", ["params", "more"])
def test_a_flipped_bit_is_detected_in_every_item(tmp_path, item, capsys):
    noise = {"x": jax.random.normal(jax.random.key(0), (64, 64))}  # does not compress
    items = {"params": noise, "more": noise}
    with Checkpoints(tmp_path, 9) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, items, {})
    flip_a_bit(tmp_path / "2" / item)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)
    with Checkpoints(tmp_path, 9) as checkpoints:
        assert checkpoints.restore(wanted)[0] == 1
    assert f"{tmp_path}/2: the checksum of {item}/x does not match" in capsys.readouterr().err


def test_only_damaged_steps_are_an_error(tmp_path):
    fill(tmp_path / "c", 1)
    flip_a_bit(tmp_path / "c" / "1")
    for _ in range(2):  # also when the command is run again
        with Checkpoints(tmp_path / "c", 9) as checkpoints, pytest.raises(DamagedCheckpoint, match="no checkpoint in"):
            checkpoints.restore({"params": abstract(), "more": abstract()})


def test_another_models_checkpoint_is_refused_and_kept(tmp_path):
    fill(tmp_path / "c", 1)
    other = {**abstract(), "d": abstract()["a"]}
    with Checkpoints(tmp_path / "c", 9) as checkpoints, pytest.raises(ValueError, match=r"another model.*params/d"):
        checkpoints.restore({"params": other})
    assert (tmp_path / "c" / "1").exists()
