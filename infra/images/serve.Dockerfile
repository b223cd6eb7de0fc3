# syntax=docker/dockerfile:1
# Image of the live endpoint: the KServe model server with our routes, video encoder and offline voices.
#   docker build -f infra/images/serve.Dockerfile -t REGISTRY/lpm/serve:TAG .
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
RUN uv pip install --no-cache -c constraints.txt -r pyproject.toml --extra serve --extra train --extra data --extra demo kfp hydra-core \
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
LABEL org.opencontainers.image.title="lpm-serve" \
      org.opencontainers.image.description="Serve a live LPM character" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Compiled blocks (--compile) are built in the running container.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/lpm /opt/lpm
COPY LICENSE NOTICE THIRD_PARTY.md /usr/share/doc/lpm/
# HOME and the caches are writable under a read-only root as long as /tmp is.
ENV PATH=/opt/lpm/bin:$PATH LPM_COMMIT=${REVISION} HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LPM_HOST=0.0.0.0
WORKDIR /tmp
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/live', timeout=4)"]
CMD ["python", "-m", "serving.runtime", "--model-dir", "/mnt/models"]
