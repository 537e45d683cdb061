# syntax=docker/dockerfile:1
#
# One image for the command line and for Prefect workers, on GPU or CPU.
#
#   docker build -t scenemill .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" \
#       scenemill segment scene.tif --model model.safetensors --out out
#
# (--user makes the outputs yours; without it they belong to user 10001, who must be able to write there.)
#
# A Prefect worker of a process pool: flows run inside its container (see prefect.yaml). Deploy once from the
# same image, so that runs find their code in /app:
#
#   docker run --rm -e PREFECT_API_URL=http://prefect.example:4200/api --workdir /app \
#       --entrypoint prefect scenemill --no-prompt deploy --all
#   docker run --rm --gpus all -e PREFECT_API_URL=http://prefect.example:4200/api -e SCENEMILL_MACHINE=mill-1 \
#       -v /data:/data --entrypoint prefect scenemill worker start --pool local-proc --type process
#
# Or a container for every run, by a worker of a docker pool outside: see prefect.docker.yaml.
#
# On Linux x86-64 the default torch wheel includes its CUDA libraries; the host needs only the NVIDIA driver and the
# NVIDIA container toolkit. For a smaller image without CUDA, or another CUDA version, give the address of the PyTorch
# index that has such wheels (see the installation page of PyTorch):
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t scenemill:cpu .
#
# Packages come from pip's default index. --build-arg PIP_INDEX_URL=ADDRESS and PIP_EXTRA_INDEX_URL=ADDRESS name others.

ARG PYTHON=3.11

# ---- build: a virtual environment with the versions of constraints.txt, and nothing else of this stage
FROM python:${PYTHON}-slim-bookworm AS build

# The torch to install; keep it equal to the pin in constraints.txt.
ARG TORCH=torch==2.13.0
# An additional index, for torch alone; its builds with a local version (+cpu, +cu130) are preferred.
ARG TORCH_INDEX=
# pip reads these two from the environment and ignores them while they are empty.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

RUN python -m venv /opt/scenemill
ENV PATH=/opt/scenemill/bin:$PATH

WORKDIR /src
COPY constraints.txt ./
# torch first and alone: its layer is large and changes rarely.
RUN pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "${TORCH}" -c constraints.txt

# The dependencies next, from the constraints alone: source changes do not reinstall them.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir -p pipeline flows \
    && printf '__version__ = "0"\n' > pipeline/__init__.py \
    && pip install -c constraints.txt . \
    && pip uninstall --yes scenemill \
    && rm -rf build pipeline flows scenemill.egg-info

COPY pipeline pipeline
COPY flows flows
RUN pip install --no-deps . \
    && pip check

# ---- run: the environment, a C compiler, an unprivileged user
FROM python:${PYTHON}-slim-bookworm AS run

# torch.compile builds its kernel launchers with a C compiler on first use; g++ serves its CPU kernels.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 10001 scenemill \
    && useradd --uid 10001 --gid scenemill --create-home scenemill \
    && install --directory --owner scenemill --group scenemill /work \
    && install --directory --owner scenemill --group scenemill --mode 700 /opt/numba

COPY --from=build /opt/scenemill /opt/scenemill
# For `prefect deploy` and as the working folder of the deployments in prefect.yaml.
COPY --chown=scenemill:scenemill prefect.yaml /app/prefect.yaml
COPY --chown=scenemill:scenemill flows /app/flows
COPY --chown=scenemill:scenemill configs /app/configs

# Logs appear as they are written; no telemetry is sent. Compiled loops are code: only the image's user may write or
# read them; another --user compiles them anew, while the network runs.
ENV PATH=/opt/scenemill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/numba \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER scenemill
# The image proves itself while it is built, and keeps the loops that numba compiles.
RUN scenemill demo --size 512 --out /tmp/demo \
    && rm -rf /tmp/demo

WORKDIR /work
VOLUME ["/work"]
ENTRYPOINT ["scenemill"]
CMD ["--help"]
