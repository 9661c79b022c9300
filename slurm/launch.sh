# Sourced by the .sbatch files: one step over all nodes of the job, a stop in time, and a place in the queue again.
# shellcheck shell=bash
# A job that Slurm is about to end gets USR1 some time before (#SBATCH --signal). The step's processes must not get it:
# it would end the launcher. So this shell takes it and writes a stop file; training sees the file, writes a checkpoint
# and stopped.json, and ends; the job goes back into the queue. If that takes longer than Slurm waits (an evaluation is
# under way, or W&B does not answer), the job goes back all the same, to go on from its newest checkpoint.

cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch, from the root of the repository}" || exit
set +u # modules and environments that a site loads use variables that are not set
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
asked_to_stop= # when, by $SECONDS
export STOP_FILE=$PWD/$log.stop
rm -f "$STOP_FILE"
trap 'asked_to_stop=${asked_to_stop:-$SECONDS}; touch "$STOP_FILE"' USR1

# Where processes meet: the job's first node, which runs this shell. Never a name that means another machine on each
# node: every node would train alone.
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

# From the job's id, so that jobs which share a node differ; below those that outgoing connections get (32768 and up);
# the next one while something listens there.
choose_port() {
    local port=$((15000 + SLURM_JOB_ID % 15000))
    while (: <"/dev/tcp/$MEETING_ADDRESS/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    export MEETING_PORT=$port
}

# await PROCESS [COMMAND]: until a process of this shell has ended; returns its exit status. A signal interrupts `wait`
# and not the process. COMMAND is called each second after this job was asked to stop.
await() {
    local status=0
    while kill -0 "$1" 2>/dev/null; do
        if [ -n "$asked_to_stop" ]; then
            "${@:2}"
            sleep 1 || true # a signal ends it
        else
            wait "$1" || true
        fi
    done
    wait "$1" || status=$?
    return "$status"
}

# launch PROGRAM FLAG...: the program on every node, a log for each; returns its exit status.
launch() {
    local status=0
    choose_head
    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $* on $SLURM_JOB_NODELIST, meeting at" \
        "$MEETING_ADDRESS:$MEETING_PORT; output in $log-node*.log"
    # srun does not take over the batch job's --cpus-per-task (Slurm 22.05 and newer).
    srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        --kill-on-bad-exit=1 --open-mode=append --output="$log-node%n.log" bash slurm/node.sh "$@" &
    await $! do_not_wait_for_ever || status=$?
    [ "$status" -eq 0 ] || tail -n 20 "$log"-node*.log >&2 || true
    return "$status"
}

# A checkpoint is all that the next start needs.
do_not_wait_for_ever() {
    [ $((SECONDS - asked_to_stop)) -ge "$STOP_WAIT" ] || return 0
    [ -n "${run:-}" ] && compgen -G "$run/checkpoints/epoch-*" >/dev/null || return 0
    requeue "$run has not ended ${STOP_WAIT} s after it was asked to"
}

# launch_again FLAG...: train.py, and back into the queue if it was stopped in time. Ends the job.
launch_again() {
    local run status=0
    run=$("${CONTAINER[@]}" "$BIN/python" -c \
        'import sys; from reid.config import Config, parse; print(parse(Config, sys.argv[1:]).folder)' "$@") ||
        fail "the flags above do not make a training run"
    rm -f "$run/stopped.json"
    launch train.py "$@" --resume=auto "--stop_file=$STOP_FILE" || status=$?
    # Asked by this shell, or by the SIGTERM that Slurm sends to the processes of a job that it preempts.
    [ ! -f "$run/stopped.json" ] || requeue "$run is stopped at $(cat "$run/stopped.json")"
    [ -n "$asked_to_stop" ] || return "$status"
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
