# What jobs need to know about this cluster. Edit it once; every value but CONTAINER can also be given in the environment.
# shellcheck shell=bash
# Read by sbatch and by every node of a job: say `source slurm/site.sh` before the first sbatch of a shell.

# Where jobs go. sbatch reads these names by itself, and flags on its command line go before them.
#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=my_project

# The environment: a folder with python, accelerate and wandb, after these modules, inside this container.
BIN=${BIN:-.venv/bin}
#module load cuda
# shellcheck disable=SC2034 # read by launch.sh and node.sh
CONTAINER=() # for example (apptainer exec --nv --bind /data reid.sif), with BIN=/usr/bin

# Caches that all nodes see: pretrained weights are fetched into them once, on a node with internet.
export TORCH_HOME=${TORCH_HOME:-$HOME/.cache/torch}
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}

# Disk of the node itself, for staged shards (STAGE).
LOCAL_SCRATCH=${LOCAL_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}

# The network between nodes; leave it out where there is only one.
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# How often a job may start again after it was asked to stop.
MAX_REQUEUES=${MAX_REQUEUES:-20}

# Seconds that a job waits for a run to stop before it goes back into the queue without; less than the time between the
# signal and the end, #SBATCH --signal=B:USR1@120.
STOP_WAIT=${STOP_WAIT:-100}

# Threads of a process; more than 1 where a node has more cores than decoding processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
