# The service on a CPU: no torch, no compiler, no root.
#   docker build -t magtiles-seg .
#   docker run --read-only --publish 8000:8000 magtiles-seg
# --env MAGTILES_DEMO=true shows the demo at /demo; the build argument EXTRAS=serve leaves it out, as deployments do;
# MODEL=runs/model.onnx puts another model in; BASE pins the base:
#   docker build --build-arg BASE=python@$(docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}') .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE constraints.txt ./
COPY magtiles_seg ./magtiles_seg
ARG EXTRAS=serve,demo
RUN python -m venv /opt/magtiles \
    && /opt/magtiles/bin/python -m pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin magtiles
COPY --from=build /opt/magtiles /opt/magtiles
ARG MODEL=magtiles_seg/infer/weights/magnetic-tile.onnx
COPY ${MODEL} /opt/model.onnx
ARG MODEL_VERSION=
# Nothing is written but to memory: uploads of the demo, counters of several workers, parts of large requests.
ENV PATH=/opt/magtiles/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/dev/shm \
    TMPDIR=/dev/shm \
    GRADIO_TEMP_DIR=/dev/shm/gradio \
    MAGTILES_MODEL=/opt/model.onnx \
    MAGTILES_MODEL_VERSION=${MODEL_VERSION} \
    PORT=8000
WORKDIR /
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/livez', timeout=2)"]
CMD ["magtiles-seg", "serve", "--host", "0.0.0.0"]
