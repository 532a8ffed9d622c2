#!/usr/bin/env bash
# One process on all devices of a machine:
#   launch/run.sh --config=configs/curriculum.py:3b --rows rows/train/*.jsonl --held-out rows/test/*.jsonl
# `:3b` and `:7b` name the model's variant; a config of your own may lie in any folder.
# PROGRAM (currreft_jax.train) and PYTHON (python) can be set. SIGTERM, SIGUSR1 and a first Ctrl-C save; a second Ctrl-C
# ends at once. Exit code 75: interrupted and saved; run it again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env_gpu.sh"

# The program takes the place of this script, and with it the signals.
exec "${PYTHON:-python}" -m "${PROGRAM:-currreft_jax.train}" "$@"
