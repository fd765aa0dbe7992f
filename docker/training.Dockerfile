# Training and export, with torch.
#
#   docker build -f docker/training.Dockerfile -t evalmode-training .
#   docker run -v "$PWD/images:/data:ro" -v runs:/work evalmode-training train /data --out run
#   docker run -v "$PWD/images:/data:ro" -v runs:/work -v models:/models \
#       evalmode-training export run --repository /models --name NAME
#
# PIP_ARGS is passed to pip install. The default torch of an index may be the CUDA build with several GB; for a machine
# without a GPU, name the index of torch's CPU builds: --build-arg PIP_ARGS='--extra-index-url ADDRESS'.

FROM python:3.11-slim-bookworm
ARG PIP_ARGS=
# Unbuffered, so that each epoch is printed when it ends; matplotlib's cache is in a folder that is writable in a read-only root.
ENV PATH=/opt/evalmode/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["evalmode"]
COPY . /source
# A new named volume gets the owner of the folder that it is mounted on.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/evalmode \
 && pip --python /opt/evalmode install --constraint /source/constraints.txt $PIP_ARGS "/source[serve,train]" \
 && install -d -o 65532 -g 65532 /work /models
WORKDIR /work
USER 65532:65532
