#!/usr/bin/env bash
# What a job's step runs on each of its nodes, once: stage the shards, then start a process for each GPU of the node.
set -euo pipefail
set +u
# shellcheck source=slurm/site.sh
source slurm/site.sh
set -u

[ "${#CONTAINER[@]}" -gt 0 ] || [ -x "$BIN/accelerate" ] || {
    echo "error: $BIN/accelerate is missing on $(hostname); run 'make .venv/installed' on a login node" >&2
    exit 2
}
program=("$@")

# A preempted job's processes get SIGTERM, this shell too: the launcher hands it on, training writes a checkpoint, and
# this shell must live until then. USR1 that reaches the step is for training, and would end the launcher.
asked_to_stop=
trap 'asked_to_stop=1' TERM
trap '' USR1

if [ -n "${STAGE:-}" ]; then
    # Two folders of the same name are two datasets.
    staged=$LOCAL_SCRATCH/$(id -un)-shards/$(basename "$STAGE")-$(realpath "$STAGE" | cksum | cut -d' ' -f1)
    "${CONTAINER[@]}" "$BIN/python" -m shards stage "$STAGE" "$staged"
    case $1 in
    train.py) program+=("--data.root=$staged") ;;
    evaluate.py) program+=("--data=$staged") ;;
    esac
fi

gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((${PROCESSES:-$((gpus > 0 ? gpus : 1))} * SLURM_NNODES))
if [ "$processes" -gt 1 ]; then
    # The config file replaces what somebody once answered to `accelerate config`. accelerate's --cpu starts one process
    # whatever --num_processes says; --multi_gpu starts all of them, and the programs join them on the CPU where there is
    # no GPU. Precision is the programs' own knob.
    start=("$BIN/accelerate" launch --config_file launch/node.yaml --multi_gpu
        --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$processes"
        --main_process_ip "$MEETING_ADDRESS" --main_process_port "$MEETING_PORT" --rdzv_backend static
        --mixed_precision no --dynamo_backend no)
else # accelerate adds nothing but a process that dies of SIGTERM before the program has written its checkpoint
    start=("$BIN/python")
fi
"${CONTAINER[@]}" "${start[@]}" "${program[@]}" || status=$?

# A launcher ends with 1 after a stop, too. The first node that did would have Slurm kill the others, one of which still
# writes what the job script looks for.
if [ "${status:-0}" -ne 0 ] && { [ -e "$STOP_FILE" ] || [ -n "$asked_to_stop" ]; }; then
    [ ! -e "$STOP_FILE" ] || echo "$(hostname): $status" >>"$STOP_FILE"
    exit 0
fi
exit "${status:-0}"
