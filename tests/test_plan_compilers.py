"""Plans by the compilers of GPUs and TPUs; without them these tests are skipped, and say so."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from math import prod

import jax
import pytest

from configs import common, stage3
from currreft_jax.planning import fit, parts
from currreft_jax.planning.devices import GIB, topology

pytestmark = pytest.mark.plan
LACKING = {
    "a800": (not find_spec("jax_cuda12_plugin"), "jax-cuda12-plugin is missing: pip install 'currreft_jax[cuda12]'"),
    "v5e": (not find_spec("libtpu"), "libtpu is missing: pip install 'currreft_jax[tpu]'"),
}


def thin(name: str):
    """The 3B's widths with two layers: its programs for a slice, and the slice."""
    jax.config.update("jax_default_matmul_precision", None)  # which the suite raises
    config = stage3.get_config("3b")
    config.stages[0].held_out = []
    reader = parts.reader_of(config)
    vision = replace(reader.config.vision, depth=2, fullatt_block_indexes=(1,))
    reader = reader._replace(config=replace(reader.config, num_hidden_layers=2, vision=vision))
    place = topology(name)
    config.data.batch_size = len(place.devices)
    return parts.programs_of(config, 0, reader, place.devices), place


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(LACKING[name.split(":")[0]][0], reason=LACKING[name.split(":")[0]][1])
        )
        for name in ("a800:1x8", "a800:2x8", "v5e:2x4")
    ],
)
def test_the_published_widths_compile(monkeypatch, name):
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    programs, place = thin(name)
    wanted = parts.parts(programs, parts.buckets(programs)[-1])
    seen = {it.part.name: it for it in fit.plan(wanted, programs, place)}
    gradient = seen["gradient"]
    assert gradient.temporaries > GIB / 4
    # Masters and the sum of gradients, 4 bytes each of a share of the parameters.
    share = programs.model.num_parameters / len(place.devices)
    assert gradient.arguments == pytest.approx(8 * share, rel=0.05)
    assert sum(gradient.moved.sent.values()) > 4 * share
    assert bool(gradient.moved.network) == (name == "a800:2x8")
    # A token reads the head and both layers once, and little else; for v5e 4% less is counted.
    weights = parts.device_bytes(seen["decode"].part.arguments[0])
    assert 0.9 * weights < seen["decode"].moved.memory / seen["decode"].part.trips < 2 * weights
    assert fit.fits(list(seen.values()), place)


@pytest.mark.parametrize("options", [fit.CUBLAS, None], ids=["cublas", "triton"])
@pytest.mark.skipif(LACKING["a800"][0], reason=LACKING["a800"][1])
def test_no_weight_is_copied_for_a_token(monkeypatch, options):
    """The loop that draws makes nothing as large as the queries' kernel: neither joined nor moved nor cast weights."""
    monkeypatch.setattr(common, "_ACCELERATORS", ("/dev/null",))
    programs, _ = thin("a800:1x8")
    wanted = parts.parts(programs, parts.buckets(programs)[-1])
    (decode,) = [part for part in wanted if part.name == "decode"]
    text = decode.program.trace(*decode.arguments).lower().compile(options).as_text()
    loop = re.search(r"while\(.*body=%([\w.-]+)", text)[1]
    body = re.search(rf"^%{re.escape(loop)} .*?^}}", text, re.DOTALL | re.MULTILINE)[0]
    free = "get-tuple-element|parameter|bitcast|tuple"
    made = re.findall(rf"^ +(?:ROOT )?%[\w.-]+ = (.*?) (?!(?:{free})\()[\w-]+\(", body, re.MULTILINE)
    shapes = [shape for it in made for shape in re.findall(r"(?:f32|bf16|u16)\[([\d,]+)\]", it)]  # s8 is cuBLAS's own
    sizes = [prod(map(int, shape.split(","))) for shape in shapes]
    assert len(sizes) > 20 and " call(" not in body
    assert max(sizes) < 2048 * 2048


@pytest.mark.skipif(*LACKING["v5e"][:1], reason=LACKING["v5e"][1])
def test_what_does_not_fit_exits_with_one():
    command = [sys.executable, "-m", "currreft_jax.plan", "--config=configs/stage3.py:7b", "--topology=v5e:2x2"]
    settings = ["--config.data.batch_size=4", "--config.sampling.group_size=2"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stdout and "Take more devices" in done.stdout
