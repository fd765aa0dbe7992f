# The server: ONNX Runtime, no torch, no compiler, no root.
#
#   docker build -f docker/serving.Dockerfile -t evalmode-serving .
#   docker run --read-only -v "$PWD/models:/models:ro" -p 127.0.0.1:8001:8001 evalmode-serving
#
# On a GPU: build with --build-arg EXTRA=serve-cuda, run with --gpus all -e EVALMODE_SERVE_PROVIDER=cuda.
# Options are EVALMODE_SERVE_* variables: the health check reads them, too. It asks /livez, or over gRPC with
# EVALMODE_SERVE_NO_METRICS. TLS needs a temporary directory: --tmpfs /tmp where the root is read-only.
# PIP_ARGS goes to pip install as it is, to name an index of your own.

FROM python:3.11-slim-bookworm AS build
ARG EXTRA=serve
ARG PIP_ARGS=
COPY . /source
# The base image's pip installs into the environment from outside, so that none is left in it. Bytecode is compiled
# here, as the root of the running container is read-only, and marked unchecked, as a copy to the next stage may change
# the times that are compared otherwise.
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
# Without a shell between, so that SIGTERM reaches the server.
ENTRYPOINT ["evalmode"]
CMD ["serve"]
COPY --from=build /opt/evalmode /opt/evalmode
# A new named volume takes the owner of the folder it is mounted on: /models is writable for the training image
# whichever of the two is run first. The imports leave the standard library's bytecode, which the base image comes
# without: a start takes half the time then, a health check a quarter.
RUN install -d -o 65532 -g 65532 /models \
 && python -c 'import serving.commands.serve, serving.model, serving.services.metrics, serving.transports.grpcio, serving.transports.metrics'
# A number, because Kubernetes' runAsNonRoot cannot tell whether a name is root.
USER 65532:65532
