#!/usr/bin/env bash
# Tests the containers: builds both images, trains, publishes, serves on a read-only root, predicts, stops.
#
#   CONTAINER      docker, or a command with docker's arguments (default docker)
#   REMOVE_IMAGES  1: remove the two images at the end
#
# All data are in named volumes, as in compose.yaml, so that this also tests their owners.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTAINER=${CONTAINER:-docker}
serving=evalmode-serving:test
training=evalmode-training:test
name=evalmode-test-$$
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)
healthcheck=(python /opt/evalmode/healthcheck.py)

step() { echo "$(date +%T) == $*"; }

fail() {
  echo "container test: FAILED: $*" >&2
  exit 1
}

cleanup() {
  {
    "$CONTAINER" rm -f "$name-server" "$name-job"
    "$CONTAINER" volume rm -f "$name-data" "$name-work" "$name-models"
    if [ "${REMOVE_IMAGES:-}" = 1 ]; then "$CONTAINER" rmi -f "$serving" "$training"; fi
  } >/dev/null 2>&1 || true
}
trap cleanup EXIT

# job ARGS...: run a container and remove it afterwards
job() { "$CONTAINER" run --rm --name "$name-job" "$@"; }

healthy() { "$CONTAINER" exec "$name-server" "${healthcheck[@]}" 2>&1; }

step "build the serving image"
"$CONTAINER" build -f docker/serving.Dockerfile -t "$serving" .

step "build the training image"
"$CONTAINER" build -f docker/training.Dockerfile -t "$training" .

step "the serving image: a numeric user, no torch, no compiler, a health check that fails without a server"
user=$("$CONTAINER" image inspect --format '{{.Config.User}}' "$serving")
[ "$user" = 65532:65532 ] || fail "the image's user is '$user'"
"$CONTAINER" image inspect "$serving" | grep -F '"/opt/evalmode/healthcheck.py"' >/dev/null || fail "no HEALTHCHECK"
for label in title version licenses; do
  value=$("$CONTAINER" image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$label\"}}" "$serving")
  [ -n "$value" ] || fail "the label $label is empty"
done
port=$(
  job -i "${hardened[@]}" --network host --entrypoint python "$serving" - <<'PYTHON'
import importlib.util, json, os, shutil, socket, subprocess, sys
from pathlib import Path

assert (os.getuid(), os.getgid()) == (65532, 65532), os.getuid()
for package in ("torch", "pip", "setuptools"):
    assert importlib.util.find_spec(package) is None, package
listed = {one["name"] for one in json.loads(Path("/opt/evalmode/sbom.cdx.json").read_text())["components"]}
assert {"evalmode", "onnxruntime", "pygrpc-native"} <= listed, listed
for tool in ("cc", "gcc", "g++", "clang", "make"):
    assert shutil.which(tool) is None, tool
with socket.socket() as free:
    free.bind(("", 0))
    port = str(free.getsockname()[1])
environment = {**os.environ, "EVALMODE_SERVE_PORT": port}
check = subprocess.run([sys.executable, "/opt/evalmode/healthcheck.py"], env=environment, stdout=sys.stderr)
assert check.returncode == 1, check.returncode
print(port)
PYTHON
) || fail "the serving image is not as expected"

step "the serving image without a model: exits with 2 and names what is missing"
code=0
said=$(job "${hardened[@]}" "$serving" 2>&1) || code=$?
echo "$said"
[ "$code" = 2 ] || fail "exit code $code"
[[ $said == *"/models holds no "* ]] || fail "the error does not name what is missing"

step "the serving image: every command has help, and commands that need torch name the extra"
job "${hardened[@]}" --entrypoint sh "$serving" -euc '
  evalmode --help
  for command in quickstart train export report check certify compare serve predict rollback bench; do
    evalmode $command --help
  done' >/dev/null || fail "a command has no help"
code=0
said=$(job "${hardened[@]}" "$serving" train digits --out /tmp/run 2>&1) || code=$?
[ "$code" = 2 ] || fail "train: exit code $code: $said"
[[ $said == "evalmode: train needs the Python package "*"'evalmode[serve,train]'" ]] || fail "train: $said"

step "write JPEG files of three colours as a folder of images"
job -i "${hardened[@]}" -v "$name-data:/models" --entrypoint python "$serving" - <<'PYTHON'
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for label, colour in {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}.items():
    for split, count in {"train": 60, "test": 20}.items():
        folder = Path("/models", split, label)
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(colour, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
PYTHON

step "train on the folder and publish, without network, on a read-only root"
exported=$(
  job "${hardened[@]}" --tmpfs /tmp --network none -v "$name-data:/data:ro" -v "$name-work:/work" \
    -v "$name-models:/models" --entrypoint sh "$training" -euc '
      evalmode train /data --out run --epochs 8
      evalmode export run --repository /models --name colours'
)
echo "$exported"
accuracy=$(awk '$1 == "accuracy" {print $2}' <<<"$exported")
[[ $accuracy =~ ^(0\.[5-9]|1\.0) ]] || fail "accuracy '$accuracy' on the test images"

step "train in two processes"
together=$(
  job "${hardened[@]}" --tmpfs /tmp --network none -v "$name-data:/data:ro" --entrypoint torchrun "$training" \
    --nproc-per-node 2 -m evalmode train /data --out /tmp/run --epochs 1
)
[[ $together == *"on cpu in 2 processes"*"run       /tmp/run"* ]] || fail "two processes: $together"

# serve ARGS...: start a server with everything read-only, and wait until its health check passes
serve() {
  "$CONTAINER" run -d --name "$name-server" "${hardened[@]}" --network host -v "$name-models:/models:ro" \
    -e "EVALMODE_SERVE_PORT=$port" "$@" "$serving" >/dev/null
  local deadline=$((SECONDS + 60)) said
  until said=$(healthy); do
    if [ "$SECONDS" -ge "$deadline" ]; then
      "$CONTAINER" logs "$name-server"
      fail "not healthy after 60 s: $said"
    fi
    sleep 0.5
  done
}

# predict: the test images through the server, whose accuracy is known
predict() {
  local answers
  answers=$(job --network host -v "$name-data:/data:ro" "$serving" \
    predict /data/test --address "127.0.0.1:$port" --csv --top-k 1 2>&1)
  [[ $answers == *"accuracy $accuracy: "* ]] || fail "the export measured $accuracy on the same images: $answers"
}

# stop: SIGTERM, exit code 0, and nothing unexpected in the log
stop() {
  "$CONTAINER" stop -t 60 "$name-server" >/dev/null
  local logs code
  logs=$("$CONTAINER" logs "$name-server" 2>&1)
  echo "$logs"
  code=$("$CONTAINER" inspect --format '{{.State.ExitCode}}' "$name-server")
  [ "$code" = 0 ] || fail "exit code $code"
  ! grep -iE 'traceback|telemetry' <<<"$logs" || fail "the server's log has an unexpected line"
  "$CONTAINER" rm "$name-server" >/dev/null
}

step "serve on port $port, everything read-only; alive and not ready while it drains"
serve -e EVALMODE_SERVE_LAME_DUCK=4
predict
"$CONTAINER" kill --signal TERM "$name-server" >/dev/null
until "$CONTAINER" logs "$name-server" 2>&1 | grep -q 'shutting down'; do sleep 0.1; done
healthy || fail "/livez fails while the server drains"
! "$CONTAINER" exec "$name-server" python -c \
  'import urllib.request; urllib.request.urlopen("http://127.0.0.1:8002/readyz")' 2>/dev/null ||
  fail "/readyz is 200 while the server drains"
"$CONTAINER" wait "$name-server" >/dev/null
stop

step "serve by two workers"
serve -e EVALMODE_SERVE_WORKERS=2 -e EVALMODE_SERVE_LAME_DUCK=0
predict
stop

step "serve by the native transport"
serve -e EVALMODE_SERVE_TRANSPORT=native -e EVALMODE_SERVE_ALLOW_UNBOUNDED_MESSAGES=1 -e EVALMODE_SERVE_LAME_DUCK=0
predict
stop

step "container test: passed"
