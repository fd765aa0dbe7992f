# Training and export, with torch.
#
#   docker build -f docker/training.Dockerfile -t evalmode-training .
#   docker run -v "$PWD/images:/data:ro" -v runs:/work evalmode-training train /data --out run
#   docker run -v "$PWD/images:/data:ro" -v runs:/work -v models:/models \
#       evalmode-training export run --repository /models --name NAME
#
# PIP_ARGS goes to pip install as it is. An index's first choice of torch may be the CUDA build, several GB of it; for a
# machine without a GPU name the index of torch's CPU builds: --build-arg PIP_ARGS='--extra-index-url ADDRESS'.

FROM python:3.11-slim-bookworm
ARG PIP_ARGS=
# Unbuffered, so that an epoch is told of when it is over; matplotlib's cache where a read-only root is writable.
ENV PATH=/opt/evalmode/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["evalmode"]
COPY . /source
# A new named volume takes the owner of the folder it is mounted on.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/evalmode \
 && pip --python /opt/evalmode install --constraint /source/constraints.txt $PIP_ARGS "/source[serve,train]" \
 && install -d -o 65532 -g 65532 /work /models
WORKDIR /work
USER 65532:65532
