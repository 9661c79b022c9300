# Shared by the .sbatch files, sourced after `program` is set to the arguments of one of the two programs: starts one
# process for each GPU of the node, or PROCESSES of them, through accelerate.
# shellcheck shell=bash

[ -x .venv/bin/accelerate ] || {
    echo "error: ${PWD}/.venv is missing; run 'make .venv/installed' on a login node" >&2
    exit 2
}

gpus=${SLURM_GPUS_ON_NODE:-0}
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

launch=(.venv/bin/accelerate launch --num_machines 1 --mixed_precision no --dynamo_backend no
    --main_process_port $((20000 + SLURM_JOB_ID % 20000)) --num_processes "$processes")
# accelerate's --cpu starts one process whatever --num_processes says; --multi_gpu starts all of them, and the programs
# join them on the CPU where there is no GPU. Precision is the programs' own knob.
if [ "$processes" -gt 1 ]; then
    launch+=(--multi_gpu)
fi
# program is set by the file that sources this one.
# shellcheck disable=SC2154
exec srun --ntasks=1 --kill-on-bad-exit=1 "${launch[@]}" "${program[@]}"
