"""The repository: modules that load no JAX, the file map, the example in Python, the lazy public API, links."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import currreft_jax as cr

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "currreft_jax",
        "currreft_jax.data.processor",
        "currreft_jax.data.packing",
        "currreft_jax.models.folder",
        "currreft_jax.world.tokenizer",
        "currreft_jax.world.write",
        "currreft_jax.dataset",
        "currreft_jax.endpoint",
        "currreft_jax.judges",
        "currreft_jax.report.__main__",
    ],
)
def test_host_side_modules_load_neither_jax_nor_torch(module):
    assert not modules_after(f"import {module}") & {"jax", "flax", "torch", "orbax"}


def test_the_public_api_is_lazy_and_complete():
    assert "jax" not in modules_after("import currreft_jax as cr; cr.load_processor")
    assert dir(cr) == sorted(cr.__all__)  # what completion offers
    for name in cr.__all__:
        assert callable(getattr(cr, name)), name
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        cr.load_modle  # noqa: B018


@pytest.mark.parametrize(("error", "code", "printed"), [("KeyboardInterrupt", -2, False), ("RuntimeError", 1, True)])
def test_ctrl_c_during_the_imports_of_a_program_prints_no_traceback(tmp_path, error, code, printed):
    (tmp_path / "absl.py").write_text(f"raise {error}")  # imported by the program
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "currreft_jax.train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, printed), done.stderr
    assert printed or not done.stderr


def test_the_file_map_is_the_tree():
    listing = re.search(r"\n```\n(.*?)```", (DOCS / "file_map.md").read_text("utf-8"), re.S)
    assert listing
    mapped = {line.split()[0].rstrip("/") for line in listing.group(1).splitlines() if line.strip()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    package = {
        path for path in tracked if path.startswith(("currreft_jax/", "tools/")) and not path.endswith("__init__.py")
    }
    tops = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    package = {path for path in package if not path.startswith("currreft_jax/world/base/")}
    assert mapped >= package, package - mapped
    assert mapped >= tops - {"currreft_jax"}, tops - mapped
    for path in mapped:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_python_of_the_commands_page_runs(checkpoint, tmp_path):
    """Runs the example with a small checkpoint and image, and fewer new tokens."""
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "commands.md").read_text("utf-8"), re.S)
    from tests import tiny

    tiny.picture(90, 60).save(tmp_path / "street.jpg")
    example = example.replace('"Qwen/Qwen2.5-VL-3B-Instruct"', repr(str(checkpoint))).replace(
        '"street.jpg"', repr(str(tmp_path / "street.jpg"))
    )
    example = example.replace("max_new_tokens=128", "max_new_tokens=4")
    example = example.replace('"out"', repr(str(tmp_path / "out")))
    exec(compile(example, "commands.md", "exec"), {})
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_every_link_in_the_docs_exists():
    for document in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text("utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
