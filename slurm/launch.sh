# Sourced by the .sbatch files: one step over all nodes of the job, a stop in time, and a place in the queue again.
# shellcheck shell=bash
# A job that Slurm is about to end gets USR1 some time before (#SBATCH --signal). The step's processes must not get it:
# it would end the launcher. So this shell takes it and writes a stop file; training sees the file, writes a checkpoint
# and stopped.json, and ends; the job goes back into the queue.

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the repository}" || exit
# shellcheck source=slurm/site.sh
source slurm/site.sh

fail() {
    echo "error: $1" >&2
    exit 2
}

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
log=slurm-${SLURM_JOB_NAME:-job}-$job
nodes=${SLURM_JOB_NUM_NODES:-1}
asked_to_stop=
export STOP_FILE=$PWD/$log.stop
rm -f "$STOP_FILE"
trap 'asked_to_stop=1; touch "$STOP_FILE"' USR1

# Where processes meet: the job's first node, which runs this shell. Never a name that means another machine on each
# node: every node would train alone.
choose_head() {
    local hosts addresses
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    mapfile -t addresses < <(scontrol --oneliner show node "$SLURM_JOB_NODELIST" | sed 's/.*NodeAddr=\([^ ]*\).*/\1/')
    [ "${#hosts[@]}" -eq "$nodes" ] || fail "the job has $nodes nodes but scontrol names ${#hosts[@]}: ${hosts[*]}"
    export HEAD_ADDRESS=${HEAD_ADDRESS:-${addresses[0]}}
    case $HEAD_ADDRESS in
    localhost | 127.*)
        [ "$(printf '%s\n' "${addresses[@]}" | sort -u | wc -l)" -eq 1 ] ||
            fail "the head's address is $HEAD_ADDRESS, which is another machine on each of ${hosts[*]}; set HEAD_ADDRESS"
        ;;
    esac
    choose_port
}

# From the job's id, so that jobs which share a node differ; the next one while something listens there.
choose_port() {
    local port=$((20000 + SLURM_JOB_ID % 20000))
    while (: <"/dev/tcp/$HEAD_ADDRESS/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    export HEAD_PORT=$port
}

# launch PROGRAM FLAG...: the program on every node, a log for each; returns its exit status.
launch() {
    local status=138 step
    choose_head
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $* on $SLURM_JOB_NODELIST, meeting at" \
        "$HEAD_ADDRESS:$HEAD_PORT; output in $log-node*.log"
    # srun does not take over the batch job's --cpus-per-task (Slurm 22.05 and newer).
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --kill-on-bad-exit=1 --open-mode=append --output="$log-node%n.log" bash slurm/node.sh "$@" &
    step=$!
    while [ "$status" -eq 138 ]; do # 128 + USR1: the wait was interrupted, the step goes on
        status=0
        wait "$step" || status=$?
    done
    [ "$status" -eq 0 ] || tail -n 20 "$log"-node*.log >&2
    return "$status"
}

# launch_again FLAG...: train.py, and back into the queue if it was stopped in time. Ends the job.
launch_again() {
    local run status=0
    run=$("${CONTAINER[@]}" "$BIN/python" -c \
        'import sys; from reid.config import Config, parse; print(parse(Config, sys.argv[1:]).folder)' "$@") ||
        fail "the flags above do not make a training run"
    rm -f "$run/stopped.json"
    launch train.py "$@" --resume=auto "--stop_file=$STOP_FILE" || status=$?
    [ -n "$asked_to_stop" ] || return "$status"
    [ ! -f "$run/stopped.json" ] || requeue "$run is stopped at $(cat "$run/stopped.json")"
    [ ! -s "$STOP_FILE" ] || status=1 # it failed while it was to stop: slurm/node.sh says so
    rm -f "$STOP_FILE"
    return "$status"
}

# requeue REASON: give the nodes back and wait in the queue again, but not for ever. Ends the job.
requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$MAX_REQUEUES" ]; then
        fail "$1; it was requeued $MAX_REQUEUES times already (MAX_REQUEUES), submit it again to go on"
    fi
    trap - EXIT
    rm -f "$STOP_FILE"
    echo "requeue: $1"
    scontrol requeue "$job" || fail "$1, and could not be requeued; submit it again to go on"
    sleep 60 # Slurm ends this shell
}
