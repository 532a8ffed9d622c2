#!/usr/bin/env bash
# One run of N processes on this machine, on simulated CPU devices, as if on several machines:
#   launch/processes.sh 2 --config=configs/curr_rl.py:tiny --workdir=runs/two
# DEVICES is the number of devices per process (4); PROGRAM and PYTHON as in run.sh. Needs bash 4.4.
# SIGTERM, SIGUSR1 and a first Ctrl-C ask all processes to save; a second Ctrl-C kills them. If a process fails, the
# script names it, kills the others and exits with its code: of several that fail at once, as when one is killed and
# JAX aborts the rest, it names each and exits with the highest code. Code 75: interrupted and saved; run it again.
set -euo pipefail
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/processes.sh N [ARGUMENTS OF THE PROGRAM]" >&2
    exit 2
fi
count=$1
shift
python="${PYTHON:-python}"
export PYTHONPATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}"
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES:-4}" NUM_PROCESSES=$count PYTHONUNBUFFERED=1
# On few cores one process may compile minutes longer than another, which XLA takes for a hang after 40 s.
export XLA_FLAGS="--xla_cpu_collective_call_terminate_timeout_seconds=600 ${XLA_FLAGS:-}"
COORDINATOR_ADDRESS=127.0.0.1:$("$python" -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
export COORDINATOR_ADDRESS

declare -A number # PROCESS_ID of each running process, by pid
signal_all() { [ ${#number[@]} -eq 0 ] || kill -s "$1" "${!number[@]}" 2>/dev/null || true; }
interrupt() { # the processes do not see Ctrl-C: bash starts them in the background, where it is ignored
    trap 'exit 130' INT
    echo "processes.sh: all processes save after this step; press Ctrl-C again to stop at once" >&2
    signal_all TERM
}
trap 'signal_all TERM' TERM
trap 'signal_all USR1' USR1
trap interrupt INT
# Waits until they are gone: a run that restarts at once finds the workdir free.
trap 'trap "" TERM USR1 INT; signal_all KILL; wait' EXIT

for ((i = 0; i < count; i++)); do
    PROCESS_ID=$i "$python" -m "${PROGRAM:-currreft_jax.train}" "$@" &
    number[$!]=$i
done
code=0
failure=0
while [ ${#number[@]} -gt 0 ]; do
    sleep 0.2 || true # not `wait`: signals end it, and make it return wrong codes (bash 5.2)
    for pid in "${!number[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then continue; fi
        ended_with=0
        wait "$pid" || ended_with=$?
        if [ "$ended_with" -ne 0 ] && [ "$ended_with" -ne 75 ]; then
            echo "processes.sh: process ${number[$pid]} (pid $pid) ended with $ended_with; the others are killed" >&2
            failure=$((ended_with > failure ? ended_with : failure))
        fi
        code=$((ended_with > code ? ended_with : code))
        unset "number[$pid]"
    done
    [ "$failure" -eq 0 ] || exit "$failure"
done
exit "$code"
