# The server: ONNX Runtime, no torch, no compiler, no shell, no package manager, no root.
#
#   docker build -f docker/serving.Dockerfile -t evalmode-serving .
#   docker run --read-only -v "$PWD/models:/models:ro" -p 127.0.0.1:8001:8001 evalmode-serving
#
# On a GPU: build with --build-arg EXTRA=serve-cuda,native, run with --gpus all -e EVALMODE_SERVE_PROVIDER=cuda.
# Set options with EVALMODE_SERVE_* variables, which the health check reads, too. It requests /livez, or calls Health/Check
# with EVALMODE_SERVE_NO_METRICS. Nothing is written, so the root can be read-only; TLS, workers and the native transport
# use /dev/shm. PIP_ARGS is passed to pip install, for example to use another index. BASE may name a digest, as
# python@sha256:..., and REVISION the commit. What the image contains is listed in /opt/evalmode/sbom.cdx.json (CycloneDX).

ARG BASE=python:3.11-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE} AS build
ARG EXTRA=serve,native
ARG PIP_ARGS=
COPY . /source
# The base image's pip installs into the environment, so that the environment itself contains no pip. Bytecode is compiled
# here because the root of the running container is read-only. It is marked unchecked because the copy to the next stage may
# change the file times that Python compares otherwise.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/evalmode \
 && pip --python /opt/evalmode install --no-compile --constraint /source/constraints.txt \
      --constraint /source/constraints-cuda.txt $PIP_ARGS "/source[$EXTRA]" \
 && python -m compileall -q -x /tests/ --invalidation-mode unchecked-hash /opt/evalmode/lib \
 && cp /source/docker/healthcheck.py /opt/evalmode/
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/sbom \
 && pip --python /opt/sbom install --no-compile cyclonedx-bom==7.5.0 $PIP_ARGS \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/evalmode/sbom.cdx.json /opt/evalmode

# hadolint ignore=DL3006
FROM ${BASE}
ARG VERSION=0.3.0
ARG REVISION=
LABEL org.opencontainers.image.title="evalmode" \
      org.opencontainers.image.description="gRPC server of image classifiers on ONNX Runtime, with proof of eval mode" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/evalmode/bin:$PATH \
    EVALMODE_SERVE_HOST=0.0.0.0 \
    EVALMODE_SERVE_REPOSITORY=/models
EXPOSE 8001 8002
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "/opt/evalmode/healthcheck.py"]
# Without a shell, so that SIGTERM reaches the server.
ENTRYPOINT ["evalmode"]
CMD ["serve"]
COPY --from=build /opt/evalmode /opt/evalmode
# A new named volume gets the owner of the folder that it is mounted on, so /models is writable for the training image
# whichever image runs first. The imports compile the bytecode of the standard library, which the base image lacks: it
# halves the time of a start, and a health check takes a quarter of the time. Last, the shell removes pip, the package
# manager and itself; Debian's list of packages stays, for scanners.
RUN install -d -o 65532 -g 65532 /models \
 && python -c 'import evalmode.cli.serve, evalmode.runtime.loading, serving.services.metrics, serving.transports.grpcio, serving.transports.metrics' \
 && rm -rf /usr/local/lib/python3*/site-packages/* /usr/lib/python3/dist-packages/* /usr/share/python-wheels \
      /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip /usr/local/bin/pip* /usr/bin/pip* \
      /usr/bin/apt* /usr/lib/apt /var/lib/apt /usr/bin/dpkg* /usr/sbin/dpkg* \
      /opt/evalmode/bin/activate* /opt/evalmode/bin/Activate* \
      /bin/sh /bin/dash /bin/bash /bin/rbash
# A number, because Kubernetes' runAsNonRoot cannot decide whether a name is root.
USER 65532:65532
