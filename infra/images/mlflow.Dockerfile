# syntax=docker/dockerfile:1
# MLflow server with drivers for PostgreSQL and S3, which the public image lacks.
#   docker build -f infra/images/mlflow.Dockerfile -t REGISTRY/lpm/mlflow:TAG .
ARG BASE_IMAGE=python:3.11.13-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.9
ARG POSTGRES_DRIVER=psycopg2-binary==2.9.13
ENV VIRTUAL_ENV=/opt/mlflow UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
RUN pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv "${VIRTUAL_ENV}"
COPY constraints.txt ./
RUN uv pip install --no-cache -c constraints.txt mlflow boto3 "${POSTGRES_DRIVER}"

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lpm-mlflow" \
      org.opencontainers.image.description="MLflow server on PostgreSQL and S3 for LPM" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/mlflow /opt/mlflow
COPY LICENSE NOTICE THIRD_PARTY.md /usr/share/doc/lpm/
ENV PATH=/opt/mlflow/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
EXPOSE 5000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
