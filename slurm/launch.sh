# Sourced by the .sbatch files. Runs a program on all nodes of the job, stops it in time and requeues the job.
# shellcheck shell=bash
# Slurm sends USR1 to this shell some time before the job's end (#SBATCH --signal=B:...). It must not reach the
# processes of the step, because it would end the launcher. This shell creates a stop file instead. Training sees the
# file, writes a checkpoint and stopped.json, and ends; then the job is requeued. If training takes longer than STOP_WAIT
# (during an evaluation, or if W&B does not answer), the job is requeued anyway and continues from its newest checkpoint.

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the repository}" || exit
set +u # modules and environments of a site may use unset variables
# shellcheck source=slurm/site.sh
source slurm/site.sh
set -u

fail() {
    echo "error: $1" >&2
    exit 2
}

[ "${#CONTAINER[@]}" -gt 0 ] || [ -x "$BIN/python" ] ||
    fail "$BIN/python is missing on $(hostname); run 'make .venv/installed' on a login node"

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
log=slurm-${SLURM_JOB_NAME:-job}-$job
nodes=${SLURM_JOB_NUM_NODES:-1}
asked_to_stop= # value of $SECONDS at the first USR1
export STOP_FILE=$PWD/$log.stop
rm -f "$STOP_FILE"
trap 'asked_to_stop=${asked_to_stop:-$SECONDS}; touch "$STOP_FILE"' USR1

# Set MEETING_ADDRESS to the job's first node, which runs this shell. Fail on a loopback address if there are several
# machines: each node would connect to itself and train separately.
choose_head() {
    local hosts addresses
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    mapfile -t addresses < <(scontrol --oneliner show node "$SLURM_JOB_NODELIST" | sed 's/.*NodeAddr=\([^ ]*\).*/\1/')
    [ "${#hosts[@]}" -eq "$nodes" ] || fail "the job has $nodes nodes but scontrol names ${#hosts[@]}: ${hosts[*]}"
    export MEETING_ADDRESS=${HEAD_ADDRESS:-${addresses[0]}}
    case $MEETING_ADDRESS in
    localhost | 127.*)
        [ "$(printf '%s\n' "${addresses[@]}" | sort -u | wc -l)" -eq 1 ] ||
            fail "the head's address is $MEETING_ADDRESS, which is another machine on each of ${hosts[*]}; set HEAD_ADDRESS"
        ;;
    esac
    choose_port
}

# Set MEETING_PORT: computed from the job id, so that jobs on the same node differ; below the range of outgoing
# connections (32768 and up); the next free port if it is in use.
choose_port() {
    local port=$((15000 + SLURM_JOB_ID % 15000))
    while (: <"/dev/tcp/$MEETING_ADDRESS/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    export MEETING_PORT=$port
}

# await PROCESS [COMMAND]: wait until a child process ends; return its exit status. A signal interrupts `wait`, not the
# process. After a request to stop, COMMAND is called every second.
await() {
    local status=0
    while kill -0 "$1" 2>/dev/null; do
        if [ -n "$asked_to_stop" ]; then
            "${@:2}"
            sleep 1 || true # a signal may interrupt it
        else
            wait "$1" || true
        fi
    done
    wait "$1" || status=$?
    return "$status"
}

# launch PROGRAM FLAG...: run the program on every node, with a log per node; return its exit status.
launch() {
    local status=0
    choose_head
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $* on $SLURM_JOB_NODELIST, meeting at" \
        "$MEETING_ADDRESS:$MEETING_PORT; output in $log-node*.log"
    # srun does not inherit --cpus-per-task of the batch job (Slurm 22.05 and newer).
    srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --kill-on-bad-exit=1 --open-mode=append --output="$log-node%n.log" bash slurm/node.sh "$@" &
    await $! requeue_if_late || status=$?
    [ "$status" -eq 0 ] || tail -n 20 "$log"-node*.log >&2 || true
    return "$status"
}

# Requeue the job if the run has a checkpoint and has not ended within STOP_WAIT seconds.
requeue_if_late() {
    [ $((SECONDS - asked_to_stop)) -ge "$STOP_WAIT" ] || return 0
    [ -n "${run:-}" ] && compgen -G "$run/checkpoints/epoch-*" >/dev/null || return 0
    requeue "$run has not ended ${STOP_WAIT} s after it was asked to"
}

# launch_again FLAG...: run train.py; requeue the job if the run was stopped.
launch_again() {
    local run status=0
    run=$("${CONTAINER[@]}" "$BIN/python" -c \
        'import sys; from reid.config import Config, parse; from reid.program import call; print(call(lambda: parse(Config, sys.argv[1:])).folder)' "$@") ||
        fail "the flags above do not make a training run"
    rm -f "$run/stopped.json"
    launch train.py "$@" --resume=auto "--stop_file=$STOP_FILE" || status=$?
    # Stopped by the stop file, or by the SIGTERM that Slurm sends to the processes of a preempted job.
    [ ! -f "$run/stopped.json" ] || requeue "$run is stopped at $(cat "$run/stopped.json")"
    [ -n "$asked_to_stop" ] || return "$status"
    [ ! -s "$STOP_FILE" ] || status=1 # slurm/node.sh wrote a failure into the file
    rm -f "$STOP_FILE"
    return "$status"
}

# requeue REASON: put the job back into the queue, at most MAX_REQUEUES times. Ends this shell.
requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
        fail "$1; it was requeued $MAX_REQUEUES times already (MAX_REQUEUES), submit it again to continue"
    fi
    trap - EXIT
    rm -f "$STOP_FILE"
    echo "requeue: $1"
    scontrol requeue "$job" || fail "$1, and could not be requeued; submit it again to continue"
    sleep 60 # Slurm ends this shell
}
