# syntax=docker/dockerfile:1
# Image of the steps ingest and curate: video, faces, voices, shards; Ray for curate.executor=ray.
#   docker build -f infra/images/curate.Dockerfile -t REGISTRY/lpm/curate:TAG .
ARG BASE_IMAGE=python:3.11.13-slim-bookworm

FROM ${BASE_IMAGE} AS build
# TORCH_INDEX: a package index with another torch build (CPU, another CUDA version); empty uses the default index.
ARG TORCH_INDEX=""
ARG UV_VERSION=0.13.9
ENV VIRTUAL_ENV=/opt/lpm UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
RUN pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv "${VIRTUAL_ENV}"
COPY pyproject.toml constraints.txt requirements-nodeps.txt ./
# torch is installed first and alone, so that nothing after it can select another build.
RUN uv pip install --no-cache ${TORCH_INDEX:+--index "${TORCH_INDEX}"} -c constraints.txt torch
# kfp: the pipeline's components run here unchanged, with nothing installed at start. hydra-core: the `lpm` command.
RUN uv pip install --no-cache -c constraints.txt -r pyproject.toml --extra data --extra demo --extra train --extra ray kfp hydra-core minio \
    && uv pip install --no-cache --no-deps -r requirements-nodeps.txt
COPY README.md LICENSE NOTICE THIRD_PARTY.md ./
COPY lpm_model lpm_model
COPY serving serving
COPY components components
COPY pipelines pipelines
RUN uv pip install --no-cache --no-deps .

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lpm-curate" \
      org.opencontainers.image.description="Ingest and curate video for LPM" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/lpm /opt/lpm
COPY LICENSE NOTICE THIRD_PARTY.md /usr/share/doc/lpm/
# KubeRay may start containers through a login shell, which resets PATH; that shell, not this one, must expand it.
# hadolint ignore=SC2016
RUN echo 'export PATH=/opt/lpm/bin:$PATH' > /etc/profile.d/lpm.sh
# HOME and the caches are writable under a read-only root as long as /tmp is.
ENV PATH=/opt/lpm/bin:$PATH LPM_COMMIT=${REVISION} HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
