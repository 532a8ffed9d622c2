#!/usr/bin/env bash
# All workers of a TPU pod slice as one run; JAX finds the others by the machine's metadata:
#   TPU=my-slice ZONE=us-east5-a launch/tpu_vm.sh --config=configs/sft.py:7b --workdir=/mnt/shared/runs/sft
# Before it, once, the repository and its environment on every worker:
#   TPU=my-slice ZONE=us-east5-a SETUP=1 REPOSITORY=https://... launch/tpu_vm.sh
# FOLDER ($HOME/currreft_jax there), PROJECT, PROGRAM as in run.sh.
# The workdir must be on storage that all workers share. A slice that was taken back is asked for again by you.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
folder="${FOLDER:-currreft_jax}"

if [ -n "${SETUP:-}" ]; then
    : "${REPOSITORY:?what to clone}"
    command="git clone $(printf %q "$REPOSITORY") $(printf %q "$folder") && cd $(printf %q "$folder") &&"
    command+=" python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'"
else
    # Lines reach the log when they are written; gcloud mixes those of all workers.
    command="cd $(printf %q "$folder") && PYTHONUNBUFFERED=1"
    # A restarted run compiles nothing twice.
    command+=" JAX_COMPILATION_CACHE_DIR=\${JAX_COMPILATION_CACHE_DIR:-\$HOME/.cache/currreft_jax/xla}"
    command+=" .venv/bin/python -m ${PROGRAM:-currreft_jax.train}"
    for argument in "$@"; do
        command+=" $(printf %q "$argument")"
    done
fi
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all \
    --command="$command"
