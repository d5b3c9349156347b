# Prediction on a CPU: no root, no network, and nothing is written but the masks.
#   docker build -f docker/predict.Dockerfile -t unet-med-predict .
#   docker run --rm --network none --read-only --tmpfs /tmp --user "$(id -u):$(id -g)" \
#       -v "$PWD/scans:/in:ro" -v "$PWD/model:/model:ro" -v "$PWD/masks:/out" unet-med-predict predict /model /in /out
# A mirror of PyPI goes in as a secret: --secret id=pip,src=pip.conf
FROM python:3.12-slim-bookworm AS build
RUN python -m venv /opt/unet-med
ENV PATH=/opt/unet-med/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY docker/predict.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-cache-dir --no-deps -r predict.txt
COPY pyproject.toml README.md LICENSE ./
COPY unet_med ./unet_med
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/unet-med /opt/unet-med
ENV PATH=/opt/unet-med/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["unet-med"]
CMD ["--help"]
