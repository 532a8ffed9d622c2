"""Two processes with four devices each load, compute and export the same as one process with eight."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from currreft_jax.models import hf
from tests import tiny
from tests.marks import quick
from tools.convert_weights.__main__ import main

# The start of every process's program. Arguments: port, process index, source, output folder.
START = """
import json, sys
from pathlib import Path
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")
port, process, source, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
"""
PROGRAM = (
    START
    + """
from functools import partial
import numpy as np
from jax.experimental import multihost_utils
from currreft_jax.data.packing import BatchShape, collate
from currreft_jax.data.processor import load
from currreft_jax.models import hf
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.multihost import to_devices
from tests import tiny
from tests.groups import group_logprobs

model, parameters = hf.load(source, mesh=make_mesh(1, 8, 1))
processor = load(source, max_pixels=30_000)
prompts = [processor.prompt(tiny.user("?" * i, i % 2), [tiny.picture(60 + i, 90, i)] * (i % 2)) for i in range(8)]
own = collate(prompts[4 * process : 4 * process + 4], model.config, BatchShape(100, 6, 6), shards=4)
tokens = np.random.default_rng(0).integers(0, 256, (8, 2, 3))
batch = to_devices((own, tokens[4 * process : 4 * process + 4]), model.mesh)
logprobs = jax.jit(partial(group_logprobs, model))(parameters, *batch)
gathered = multihost_utils.process_allgather(logprobs, tiled=True)
hf.export(model, parameters, processor, out)
if process == 0:
    print(json.dumps(np.asarray(gathered).tolist()))
"""
)


def run_two_processes(source: Path, out: Path, program: str = PROGRAM) -> np.ndarray:
    """Runs a program in two processes; returns the array that the first one prints as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parent.parent
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, port, str(process), str(source), str(out)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(error for _, error in results)
    return np.array(json.loads(results[0][0].splitlines()[-1]))


@pytest.fixture(scope="module")
def single_process_logprobs(checkpoint) -> np.ndarray:
    from functools import partial

    from currreft_jax.data.packing import BatchShape, collate
    from currreft_jax.data.processor import load
    from tests.groups import group_logprobs

    model, parameters = hf.load(checkpoint)
    processor = load(checkpoint, max_pixels=30_000)
    prompts = [processor.prompt(tiny.user("?" * i, i % 2), [tiny.picture(60 + i, 90, i)] * (i % 2)) for i in range(8)]
    batch = collate(prompts, model.config, BatchShape(100, 30, 6))
    tokens = np.random.default_rng(0).integers(0, 256, (8, 2, 3))
    return np.asarray(jax.jit(partial(group_logprobs, model))(parameters, batch, tokens))


@pytest.mark.parametrize("native", quick([False, True]), ids=["hugging face", "native"])
def test_two_processes_match_one(checkpoint, single_process_logprobs, tmp_path, native):
    source = checkpoint
    if native:
        source = tmp_path / "native"
        assert main([str(checkpoint), str(source)]) == 0
    np.testing.assert_allclose(run_two_processes(source, tmp_path / "out"), single_process_logprobs, atol=5e-6, rtol=0)
    assert hf.digests(hf.read_tensors(tmp_path / "out")) == hf.digests(hf.read_tensors(checkpoint))
