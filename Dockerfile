# syntax=docker/dockerfile:1
# The images of Travelrec: `docker build --target api .` and `--target worker`; `load` is Locust (loadtest/).
# All start from nothing but Python and its libraries (docs/decisions/0012-images.md) and share their layers.

FROM ghcr.io/astral-sh/uv:0.13 AS uv

FROM python:3.13-slim-bookworm AS base
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_DEV=1 UV_PYTHON=/usr/local/bin/python3.13 UV_PYTHON_DOWNLOADS=never
COPY --from=uv /uv /usr/local/bin/uv
WORKDIR /app


# --- dependencies, as uv.lock has them and from wheels only; this layer lasts until the lock file changes ---

FROM base AS dependencies
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=uv.lock,target=uv.lock \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=services/api/pyproject.toml,target=services/api/pyproject.toml \
    --mount=type=bind,source=services/core/pyproject.toml,target=services/core/pyproject.toml \
    --mount=type=bind,source=services/worker/pyproject.toml,target=services/worker/pyproject.toml \
    --mount=type=bind,source=tests/pyproject.toml,target=tests/pyproject.toml \
    uv sync --locked --no-build --no-install-workspace

FROM dependencies AS root
# binutils takes debug symbols out; nothing of it is shipped, so its version does not matter
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY docker/rootfs.py /
RUN python /rootfs.py /image /app/.venv


# --- our own code, as wheels ---

FROM dependencies AS code
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=pyproject.toml,target=/source/pyproject.toml \
    --mount=type=bind,source=services,target=/source/services \
    --mount=type=bind,source=tests/pyproject.toml,target=/source/tests/pyproject.toml \
    for service in core api worker; do \
      uv build --quiet --directory /source --package travelrec-$service --wheel --out-dir /wheels || exit; \
    done \
 && uv pip install --python /app/.venv --prefix /code --no-deps --no-index /wheels/*.whl


# --- what is shipped ---

FROM scratch AS runtime
ARG VERSION=0.1.0 REVISION=unknown
LABEL org.opencontainers.image.title="Travelrec" \
      org.opencontainers.image.description="Slow, flaky, paid-for model calls behind an API that answers at once" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/app/.venv/bin:/usr/local/bin LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt HOST=0.0.0.0
COPY --from=root /image /
COPY --from=code /code /app/.venv
COPY docker/healthcheck.py /app/
WORKDIR /app
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["travelrec"]

FROM runtime AS worker
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=6 \
    CMD ["python", "healthcheck.py", "METRICS_PORT", "9000"]
CMD ["worker"]

FROM runtime AS api
EXPOSE 3000
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=6 \
    CMD ["python", "healthcheck.py", "PORT", "3000"]
CMD ["api"]


# --- Locust, apart: nothing of it is in the two above ---

FROM base AS locust
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=uv.lock,target=uv.lock \
    --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    --mount=type=bind,source=services,target=services \
    --mount=type=bind,source=tests/pyproject.toml,target=tests/pyproject.toml \
    uv sync --locked --no-build --only-group load

FROM python:3.13-slim-bookworm AS load
ENV PATH=/app/.venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
COPY --from=locust /app/.venv /app/.venv
COPY loadtest/*.py /app/
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["locust", "--locustfile", "/app/locustfile.py"]
