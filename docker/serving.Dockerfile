# The server: ONNX Runtime, no torch, no compiler, no root.
#
#   docker build -f docker/serving.Dockerfile -t evalmode-serving .
#   docker run --read-only -v "$PWD/models:/models:ro" -p 127.0.0.1:8001:8001 evalmode-serving
#
# On a GPU: build with --build-arg EXTRA=serve-cuda, run with --gpus all -e EVALMODE_SERVE_PROVIDER=cuda.
# Set options with EVALMODE_SERVE_* variables, which the health check reads, too. It requests /livez, or calls Health/Check
# with EVALMODE_SERVE_NO_METRICS. TLS needs a temporary directory: use --tmpfs /tmp if the root is read-only.
# PIP_ARGS is passed to pip install, for example to use another index.

FROM python:3.11-slim-bookworm AS build
ARG EXTRA=serve
ARG PIP_ARGS=
COPY . /source
# The base image's pip installs into the environment, so that the environment itself contains no pip. Bytecode is compiled
# here because the root of the running container is read-only. It is marked unchecked because the copy to the next stage may
# change the file times that Python compares otherwise.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/evalmode \
 && pip --python /opt/evalmode install --no-compile --constraint /source/constraints.txt $PIP_ARGS "/source[$EXTRA]" \
 && python -m compileall -q -x /tests/ --invalidation-mode unchecked-hash /opt/evalmode/lib \
 && cp /source/docker/healthcheck.py /opt/evalmode/

FROM python:3.11-slim-bookworm
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
# halves the time of a start, and a health check takes a quarter of the time.
RUN install -d -o 65532 -g 65532 /models \
 && python -c 'import evalmode.cli.serve, evalmode.runtime.loading, serving.services.metrics, serving.transports.grpcio, serving.transports.metrics'
# A number, because Kubernetes' runAsNonRoot cannot decide whether a name is root.
USER 65532:65532
