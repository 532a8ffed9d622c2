#!/usr/bin/env bash
# One machine with all its devices, as one process:
#   launch/run.sh --config=configs/sft.py:3b --workdir=runs/sft
# PROGRAM (currreft_jax.train) and PYTHON (python) may be others. Exit code 75: interrupted and saved, start it again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env_gpu.sh"

exec "${PYTHON:-python}" -m "${PROGRAM:-currreft_jax.train}" "$@"
