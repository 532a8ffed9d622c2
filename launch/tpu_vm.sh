#!/usr/bin/env bash
# One run on all workers of a TPU pod slice; JAX finds them in the machines' metadata:
#   TPU=my-slice ZONE=us-east5-a launch/tpu_vm.sh --config=configs/sft.py:7b --workdir=/mnt/shared/runs/sft
# Once before, to install the repository and its environment on every worker:
#   TPU=my-slice ZONE=us-east5-a SETUP=1 REPOSITORY=https://... launch/tpu_vm.sh
# FOLDER is the repository on the workers ($HOME/currreft_jax), PROJECT is gcloud's; PROGRAM as in run.sh.
# The workdir must be on storage that all workers share. A preempted slice must be requested again by hand.
set -euo pipefail
: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"
folder="${FOLDER:-currreft_jax}"

if [ -n "${SETUP:-}" ]; then
    : "${REPOSITORY:?set it to the URL to clone}"
    command="git clone $(printf %q "$REPOSITORY") $(printf %q "$folder") && cd $(printf %q "$folder") &&"
    command+=" python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'"
else
    # Lines reach the log at once; gcloud mixes those of all workers.
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
