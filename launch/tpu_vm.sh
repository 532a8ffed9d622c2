#!/usr/bin/env bash
# One run on all workers of a TPU pod slice; JAX finds them in the machines' metadata:
#   TPU=my-slice ZONE=us-east5-a launch/tpu_vm.sh \
#     --config=configs/curr_rl.py:7b --rows /mnt/shared/rows/train/*.jsonl --workdir=/mnt/shared/runs/curr_rl
# Once before, to install the repository and its environment on every worker:
#   TPU=my-slice ZONE=us-east5-a SETUP=1 REPOSITORY=https://... launch/tpu_vm.sh
# FOLDER is the repository on the workers ($HOME/currreft_jax), PROJECT is gcloud's; PROGRAM as in run.sh.
# The workdir must be on storage that all workers share. A preempted slice must be requested again by hand.
# SIGTERM, SIGUSR1 and a first Ctrl-C ask the workers to save; a second Ctrl-C kills them. Exit code 75: interrupted and
# saved; run it again.
set -euo pipefail
: "${TPU:?set it to the name of the slice}" "${ZONE:?set it to the zone of the slice}"
folder="${FOLDER:-currreft_jax}"
on_all_workers() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --worker=all --command="$1"
}

if [ -n "${SETUP:-}" ]; then
    : "${REPOSITORY:?set it to the URL to clone}"
    command="git clone $(printf %q "$REPOSITORY") $(printf %q "$folder") && cd $(printf %q "$folder") &&"
    command+=" python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[tpu]'"
    on_all_workers "$command"
    exit
fi

# ssh passes no signal on, so that each worker notes its pid, and a second ssh sends the signal.
pid_file="/tmp/currreft_jax-$(date +%s)-$$.pid"
command="cd $(printf %q "$folder") && echo \$\$ > $pid_file"
command+=" && export PYTHONUNBUFFERED=1" # lines reach the log at once (gcloud mixes those of all workers)
command+=" && exec .venv/bin/python -m ${PROGRAM:-currreft_jax.train}"
for argument in "$@"; do
    command+=" $(printf %q "$argument")"
done

start() { # in a process group of its own, which the terminal's Ctrl-C does not reach
    set -m
    on_all_workers "$1" </dev/null &
    set +m
}
pass_on() { start "kill -$1 \$(cat $pid_file)"; }
interrupt() {
    trap 'pass_on KILL; wait "$!" || true; exit 130' INT
    echo "tpu_vm.sh: all workers save after this step; press Ctrl-C again to stop at once" >&2
    pass_on TERM
}
trap 'pass_on TERM' TERM
trap 'pass_on USR1' USR1
trap interrupt INT

start "$command"
run=$!
while kill -0 "$run" 2>/dev/null; do sleep 0.5 || true; done # `wait` would end at each signal
wait "$run"
