#!/usr/bin/env bash
# Runs once on each node of a job: stages the shards, then starts one process per GPU.
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

# Slurm sends SIGTERM to all processes of a preempted job, including this shell. The launcher forwards it, and training
# writes a checkpoint; this shell must not end before that. USR1 is ignored because it would end the launcher.
asked_to_stop=
trap 'asked_to_stop=1' TERM
trap '' USR1

if [ -n "${STAGE:-}" ]; then
    staged=()
    IFS=: read -ra folders <<<"$STAGE"
    for folder in "${folders[@]}"; do
        # The checksum of the path keeps two folders with the same name apart.
        copy=$LOCAL_SCRATCH/$(id -un)-shards/$(basename "$folder")-$(realpath "$folder" | cksum | cut -d' ' -f1)
        "${CONTAINER[@]}" "$BIN/python" -m shards stage "$folder" "$copy"
        staged+=("$copy")
    done
    list="[$(IFS=,; echo "${staged[*]}")]"
    case $1 in
    train.py) program+=("--data.root=$list") ;;
    evaluate.py) program+=("--data=$list") ;;
    esac
fi

gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((${PROCESSES:-$((gpus > 0 ? gpus : 1))} * SLURM_NNODES))
if [ "$processes" -gt 1 ]; then
    # --config_file overrides the user's `accelerate config`. --multi_gpu also on nodes without GPUs: accelerate's --cpu
    # starts one process for any --num_processes; the programs connect the processes on the CPU. The programs also set
    # the precision.
    start=("$BIN/accelerate" launch --config_file launch/node.yaml --multi_gpu
        --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes "$processes"
        --main_process_ip "$MEETING_ADDRESS" --main_process_port "$MEETING_PORT" --rdzv_backend static
        --mixed_precision no --dynamo_backend no)
else # without accelerate, whose launcher process would end on SIGTERM before the checkpoint is written
    start=("$BIN/python")
fi
"${CONTAINER[@]}" "${start[@]}" "${program[@]}" || status=$?

# The launcher also exits with 1 after a stop. If this node returned 1, Slurm would kill the other nodes, which may
# still be writing the checkpoint and stopped.json.
if [ "${status:-0}" -ne 0 ] && { [ -e "$STOP_FILE" ] || [ -n "$asked_to_stop" ]; }; then
    [ ! -e "$STOP_FILE" ] || echo "$(hostname): $status" >>"$STOP_FILE"
    exit 0
fi
exit "${status:-0}"
