# Settings of this cluster. Edit this file once. All values except CONTAINER can also be set in the environment.
# shellcheck shell=bash
# Job files read it on every node. Also run `source slurm/site.sh` in each shell before its first sbatch.

# Partition and account. sbatch reads these variables; flags on its command line take precedence.
#export SBATCH_PARTITION=gpu
#export SBATCH_ACCOUNT=my_project

# The environment: the folder that contains python, accelerate and wandb; modules to load; a container.
BIN=${BIN:-.venv/bin}
#module load cuda
# shellcheck disable=SC2034 # read by launch.sh and node.sh
CONTAINER=() # for example (apptainer exec --nv --bind /data reid.sif), with BIN=/usr/bin

# Caches on a file system that all nodes share. Fetch pretrained weights into them once, on a node with internet.
export TORCH_HOME=${TORCH_HOME:-$HOME/.cache/torch}
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}

# Local disk of a node, for staged shards (STAGE).
LOCAL_SCRATCH=${LOCAL_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}

# The network between nodes. Not needed if there is only one.
#export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Maximum number of requeues of a job.
MAX_REQUEUES=${MAX_REQUEUES:-20}

# Seconds that a job waits for its run to stop before it is requeued anyway. Must be less than the time between the
# signal and the time limit (#SBATCH --signal=B:USR1@120).
STOP_WAIT=${STOP_WAIT:-100}

# Threads per process. Set more than 1 if a node has more cores than decoding processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
