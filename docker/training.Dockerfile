# Training and export, with torch.
#
#   docker build -f docker/training.Dockerfile -t evalmode-training .
#   docker run -v "$PWD/images:/data:ro" -v runs:/work evalmode-training train /data --out run
#   docker run -v "$PWD/images:/data:ro" -v runs:/work -v models:/models \
#       evalmode-training export run --repository /models --name NAME
#
# PIP_ARGS is passed to pip install. The default torch of an index may be the CUDA build with several GB; for a machine
# without a GPU, name the index of torch's CPU builds: --build-arg PIP_ARGS='--extra-index-url ADDRESS'. BASE may name a
# digest, as python@sha256:..., and REVISION the commit. What the image contains is listed in /opt/evalmode/sbom.cdx.json
# (CycloneDX).

ARG BASE=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}
ARG PIP_ARGS=
# Unbuffered, so that each epoch is printed when it ends; matplotlib's cache is in a folder that is writable in a read-only root.
ENV PATH=/opt/evalmode/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["evalmode"]
COPY . /source
# A new named volume gets the owner of the folder that it is mounted on. The list of contents is made by another environment,
# which is not kept.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/evalmode \
 && pip --python /opt/evalmode install --constraint /source/constraints.txt $PIP_ARGS "/source[serve,train]" \
 && python -m venv --without-pip /opt/sbom \
 && pip --python /opt/sbom install --no-compile cyclonedx-bom==7.5.0 $PIP_ARGS \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/evalmode/sbom.cdx.json /opt/evalmode \
 && rm -r /opt/sbom \
 && install -d -o 65532 -g 65532 /work /models
WORKDIR /work
ARG VERSION=0.3.0
ARG REVISION=
LABEL org.opencontainers.image.title="evalmode training" \
      org.opencontainers.image.description="Trains image classifiers and exports them in eval mode to one ONNX file" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
