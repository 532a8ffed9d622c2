# Sourced by the scripts that stay while the program runs: they pass signals on, and wait until it has saved.

signals=0 # number of signals that were passed on; traps count them

# Waits for a process, whichever signals arrive meanwhile; returns its exit code. `wait` alone returns at every signal.
wait_through_signals() {
    local before code
    while :; do
        before=$signals code=0
        wait "$1" || code=$?
        if [ "$signals" -eq "$before" ]; then return "$code"; fi
    done
}
