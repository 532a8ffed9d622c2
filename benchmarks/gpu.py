"""Measures numerics, speed and memory on a machine with one GPU, part by part, in under 8 minutes.

  python -m benchmarks.gpu [--out runs/gpu.json] [--only PART ...] [--size 3b | tiny] [--budget SECONDS]

Nothing is downloaded: the weights are random, the images noise. Each part runs in a process of its own, with the
environment of launch/env_gpu.sh, and writes its figures to the JSON file as it has them. A part that no longer fits the
budget is left out and named; the same command then goes on with the parts that are missing, and compiles nothing twice.

  device     a bf16 matmul and a copy
  numerics   a small model in fp32 on the device and on the CPU: logits, log-probs, gradient, greedy and sampled tokens,
             sampler against trainer; a difference beyond rounding fails
  attention  the platform's attention kernel against einsum in bf16: logits, log-probs and gradient of the small model,
             by their distances from fp32; seconds of the gradient of the 3B's update with either
  sampling   prefix and decoding of 32 and 64 completions, 8 a prompt: the share of the memory bandwidth
  step       a GRPO step: 8 prompts with a 512-token image, 8 completions each of 512 tokens; prefix, sampling,
             reference and update with their shares of the peak (MFU), peak memory against the plan's
  sft        a step of supervised fine-tuning on the same prompts, peak memory against the plan's
  generate   `generate` of transformers on the prompts of `step`, if torch is installed

The step takes the first settings that the plan says fit: AdamW, Adafactor, then fewer prompts; the table names them.
Exit codes: 0 all parts are measured, 1 one failed, 75 some are left for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from currreft_jax.config.output import output_path

# With fewer seconds left, a part is not worth starting: it takes at least as long where nothing is compiled yet.
PART_SECONDS = {"device": 15, "numerics": 45, "attention": 90, "sampling": 60, "step": 80, "sft": 40, "generate": 60}
TINY_SECONDS = 5
ENVIRONMENT = Path(__file__).resolve().parent.parent / "launch" / "env_gpu.sh"
FAILED, LEFT = 1, 75
GB, GIB = 10**9, 2**30

Results = dict[str, Any]
RunPart = Callable[[str, argparse.Namespace, float], None]


def main(argv: Sequence[str] | None = None, run: RunPart | None = None) -> int:
    """Runs the parts that are missing.

    Args:
        argv: command line.
        run: runs a part: its name, the options, the seconds that are left; by default in a process of its own.

    Returns:
        The exit code.
    """
    begin, options = time.monotonic(), _parser().parse_args(argv)
    if options.part:
        return measure_part(options.part, options)
    run = run or run_in_process
    results = read_results(options.out, options.size)
    for name in options.only:
        elapsed = time.monotonic() - begin
        left = options.budget - elapsed
        needed = PART_SECONDS[name] if options.size == "3b" else TINY_SECONDS
        if is_finished(results, name):
            _say(elapsed, name, f"measured before; remove {options.out} to measure again")
        elif left < needed:
            _say(elapsed, name, f"left out: it needs {needed} s or more, and {left:.0f} are left")
        else:
            _say(elapsed, name, f"starts, {left:.0f} s are left")
            run(name, options, left)
            results = read_results(options.out, options.size)
    print(format_results(results, options.only), flush=True)
    if any(results["parts"].get(name, {}).get("failures") for name in options.only):
        return FAILED
    return 0 if all(is_finished(results, name) for name in options.only) else LEFT


def run_in_process(name: str, options: argparse.Namespace, left: float) -> None:
    """Runs a part in a process of its own, until it ends or the budget does; records why it ended early."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--size", options.size, "--out", options.out]
    command += ["--hf-python", options.hf_python]
    # JAX is told of no platform by default; the CPU must be there beside the GPU.
    platforms = os.environ.get("JAX_PLATFORMS", "")
    environment = {
        **os.environ,
        **({"JAX_PLATFORMS": f"{platforms},cpu"} if platforms and "cpu" not in platforms.split(",") else {}),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    # A session of its own, so that the peer of `generate` ends with the part.
    process = subprocess.Popen(
        ["bash", "-c", '. "$0" && exec "$@"', str(ENVIRONMENT), *map(str, command)],
        env=environment,
        start_new_session=True,
    )
    try:
        code = process.wait(left)
    except subprocess.TimeoutExpired:
        write_part(options.out, options.size, name, {"ended": f"at the end of the budget, after {left:.0f} s"})
        return
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    part = read_results(options.out, options.size)["parts"].get(name, {})
    if code and not part.get("failures"):
        write_part(
            options.out,
            options.size,
            name,
            {"failures": [f"its process ended with exit code {code}; its own lines say why"]},
        )


def measure_part(name: str, options: argparse.Namespace) -> int:
    """Runs a part in this process.

    Returns:
        The exit code: 1 if figures are out of their bounds.

    Raises:
        SystemExit: the file has figures of another device, or there is no GPU.
    """
    begin = time.monotonic()
    import jax

    from benchmarks.gpu_parts import PARTS, Bench
    from currreft_jax.runtime.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    if name == "generate":
        jax.config.update("jax_platforms", "cpu")  # leaves the GPU to torch
    else:
        device = jax.devices()[0]
        if device.platform == "cpu" and options.size != "tiny":
            raise SystemExit(f"gpu: --size {options.size} needs a GPU, and JAX sees none; --size tiny runs on CPUs")
        refuse_other_device(options.out, options.size, device.device_kind)
    write_part(options.out, options.size, name, None)

    def say(line: str) -> None:
        _say(time.monotonic() - begin, name, line)

    def report(**figures: Any) -> None:
        write_part(options.out, options.size, name, figures)

    with tempfile.TemporaryDirectory() as folder:
        PARTS[name](Bench(options.size, Path(folder), options.hf_python, say, report))
    failures = read_results(options.out, options.size)["parts"][name].get("failures", [])
    report(finished=not failures, part_seconds=time.monotonic() - begin)
    for failure in failures:
        say(f"FAILED: {failure}")
    say("failed" if failures else "finished")
    return FAILED if failures else 0


# ---------------------------------------------------------------------------------------------------------- the results


def read_results(path: Path, size: str) -> Results:
    """Reads the results so far.

    Raises:
        SystemExit: the file is of another size.
    """
    if not path.exists():
        return {"size": size, "device": None, "parts": {}}
    results = json.loads(path.read_text("utf-8"))
    if results["size"] != size:
        raise SystemExit(f"gpu: {path} is of --size {results['size']}, not {size}: give another --out")
    return results


def write_part(path: Path, size: str, name: str, figures: dict[str, Any] | None) -> None:
    """Adds figures of a part to the file, or drops the part's earlier ones if None."""
    results = read_results(path, size)
    parts = results["parts"]
    parts[name] = {} if figures is None else {**parts.get(name, {}), **figures}
    _write(path, results)


def refuse_other_device(path: Path, size: str, device: str) -> None:
    """Records the device of the first part.

    Raises:
        SystemExit: the file has figures of another device.
    """
    results = read_results(path, size)
    if results["device"] not in (None, device):
        raise SystemExit(f"gpu: {path} is of {results['device']}, not of {device}: give another --out")
    _write(path, {**results, "device": device})


def is_finished(results: Results, name: str) -> bool:
    """Returns whether a part is measured, and nothing in it failed."""
    return bool(results["parts"].get(name, {}).get("finished"))


def _write(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    partial.replace(path)


# ------------------------------------------------------------------------------------------------------------ the table


def format_results(results: Results, names: Sequence[str]) -> str:
    """Formats the figures of the parts, and names those that failed or are missing."""
    parts = {name: results["parts"].get(name, {}) for name in names}
    lines = [f"{results['device'] or 'no device yet'}, size {results['size']}"]
    for name, part in parts.items():
        if is_finished(results, name):
            lines += [f"{name}", *(f"  {line}" for line in _FORMATS[name](part, results))]
        elif part.get("failures"):
            lines += [f"{name}: FAILED", *(f"  {failure}" for failure in part["failures"])]
        else:
            lines.append(f"{name}: not measured{', ended ' + part['ended'] if 'ended' in part else ''}")
    if missing := [name for name in names if not is_finished(results, name) and not parts[name].get("failures")]:
        lines.append(f"not measured: {', '.join(missing)}; run the same command again")
    return "\n".join(lines)


def _format_device(part: Results, results: Results) -> list[str]:
    sheet, memory = part["data_sheet"], part["memory_bytes"]
    peak = (
        f", of {sheet['peak_flops'] / 1e12:.0f} TFLOP/s and {sheet['bandwidth'] / GB:,.0f} GB/s of the data sheet"
        if sheet
        else "; the device is not in planning's table"
    )
    arrays = f", {memory / GIB:.1f} GiB for arrays" if memory else ""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return [
        versions + arrays,
        f"bf16 matmul {part['matmul_flops'] / 1e12:,.1f} TFLOP/s, copy {part['copy_bandwidth'] / GB:,.1f} GB/s{peak}",
    ]


def _format_numerics(part: Results, results: Results) -> list[str]:
    differences = [f"{name.replace('_', ' ')} {value:.1e}" for name, value in part["differences"].items()]
    return [f"largest differences from the CPU, {part['completions']} completions: {', '.join(differences)}"]


def _format_attention(part: Results, results: Results) -> list[str]:
    if "skipped" in part:
        return [f"skipped: {part['skipped']}"]
    errors = "; ".join(
        f"{name} {', '.join(f'{kernel} {error:.1e}' for kernel, error in both.items())}"
        for name, both in part["errors"].items()
    )
    seconds = ", ".join(f"{kernel} {value:.3f}" for kernel, value in part["gradient_seconds"].items())
    return [f"distances from fp32 in bf16: {errors}", f"seconds of an update's gradient: {seconds}"]


def _format_sampling(part: Results, results: Results) -> list[str]:
    copy = results["parts"].get("device", {}).get("copy_bandwidth")
    lines = [f"{'':8}{'prefix s':>10}{'step ms':>10}{'tokens/s':>10}{'bandwidth':>11}{'of a copy':>11}{'compiled':>10}"]
    for name, figures in part.items():
        if not name.startswith("B="):
            continue
        of_copy = figures["decode_bandwidth"] / copy if copy else None
        lines.append(
            f"{name:8}{figures['prefix_seconds']:>10.3f}{1e3 * figures['decode_step_seconds']:>10.2f}"
            f"{figures['tokens_per_second']:>10,.0f}{_percent(figures['bandwidth_share']):>11}{_percent(of_copy):>11}"
            f"{figures['compiled_after_warm_up']:>10}"
        )
    return lines


def _format_step(part: Results, results: Results) -> list[str]:
    planned, seconds = part["planned"], part["seconds"]
    shares = ", ".join(f"{name.replace('_', ' ')} {_percent(share)}" for name, share in part["utilisation"].items())
    phases = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items() if name != "step")
    predicted = f", planned {planned['seconds']:.3f}" if planned["seconds"] else ""
    measured = f"{part['peak_bytes'] / GIB:.2f}" if part["peak_bytes"] else "unknown"
    return [
        f"{part['prompts']} prompts of {part['prompt_tokens']} tokens x {part['group']} completions of"
        f" {part['new_tokens']} tokens, {part['optimizer']}",
        *(f"does not fit: {reason}" for reason in part["refused"]),
        f"seconds of a step {seconds['step']:.3f}{predicted}{'; in phases: ' + phases if phases else ''}",
        f"shares of the bf16 peak: {shares}",
        f"peak memory {measured} GiB, planned {planned['peak_bytes'] / GIB:.2f}",
    ]


def _format_generate(part: Results, results: Results) -> list[str]:
    if "skipped" in part:
        return [f"skipped: {part['skipped']}"]
    ours = results["parts"].get("sampling", {}).get(f"B={part['completions']}", {}).get("tokens_per_second")
    ratio = f"; ours x {ours / part['tokens_per_second']:.2f}" if ours else ""
    return [f"{part['completions']} completions: {part['tokens_per_second']:,.0f} tokens/s{ratio}"]


_FORMATS: dict[str, Callable[[Results, Results], list[str]]] = {
    "device": _format_device,
    "numerics": _format_numerics,
    "attention": _format_attention,
    "sampling": _format_sampling,
    "step": _format_step,
    "sft": _format_step,
    "generate": _format_generate,
}


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def _say(elapsed: float, part: str, line: str) -> None:
    print(f"[{elapsed:5.0f} s] {part}: {line}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(PART_SECONDS)
    default = Path("runs/gpu.json")
    parser.add_argument("--out", type=output_path, default=default, metavar="FILE", help="results (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help="these parts alone")
    parser.add_argument("--size", choices=("3b", "tiny"), default="3b", help="shape of the model (%(default)s)")
    parser.add_argument("--budget", type=float, default=470, metavar="SECONDS", help="of the whole call (%(default)s)")
    parser.add_argument(
        "--hf-python",
        default=sys.executable,
        metavar="PYTHON",
        help="Python of an environment with torch and transformers 5 (default: this one)",
    )
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)  # measures one part in this process
    return parser


if __name__ == "__main__":
    sys.exit(main())
