# Training and evaluation on NVIDIA GPUs. Build and run:
#   docker build --tag mctl-reid .
#   docker run --gpus all --shm-size=8g --volume "$PWD/data:/work/data" --volume "$PWD/runs:/work/runs" mctl-reid \
#       train --processes 4 --config reid:market1501
# --shm-size: decoding processes hand over images in /dev/shm, of which a container has 64 MiB by default.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mctl-reid

# The wheels of torch bring CUDA's libraries; the host has only the driver and the NVIDIA Container Toolkit.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY reid reid
COPY shards shards
COPY configs configs
COPY launch launch
COPY slurm slurm
RUN pip install --constraint constraints.txt '.[export,timm,sweep]'

# Mount /work/cache to keep downloaded weights. --user may give any user.
ENV TORCH_HOME=/work/cache/torch HF_HOME=/work/cache/huggingface MPLCONFIGDIR=/tmp/matplotlib
RUN mkdir -p /work/cache /work/data /work/runs && chmod -R a+rwX /work
WORKDIR /work

ENTRYPOINT ["reid"]
CMD ["--help"]
