# Training, and everything else, without root; --gpus all gives it the cards.
#   docker build -f docker/train.Dockerfile -t unet-med-train .
#   docker run --rm --gpus all --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/work" \
#       unet-med-train run pipelines/semantic_3d.yaml scans --out OUT
# A mirror of PyPI, or the place of torch's CPU wheels, goes in as a secret: --secret id=pip,src=pip.conf
FROM python:3.12-slim-bookworm
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
WORKDIR /app
COPY constraints.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-cache-dir -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY unet_med ./unet_med
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-cache-dir -c constraints.txt ".[dicom,pacs]"
COPY pipelines ./pipelines
RUN mkdir -m 1777 /work /mlflow
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["unet-med"]
CMD ["--help"]
