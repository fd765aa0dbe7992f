#!/usr/bin/env bash
# The whole story in containers: build both images, train, publish, serve on a read-only root, predict, stop.
#
#   CONTAINER      docker, or a command that takes docker's arguments (default docker)
#   REMOVE_IMAGES  1 removes the two images at the end
#
# Everything lies in named volumes, as in compose.yaml, so that this also tests who owns them.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTAINER=${CONTAINER:-docker}
serving=evalmode-serving:test
training=evalmode-training:test
name=evalmode-test-$$
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)

step() { echo "== $*"; }

fail() {
  echo "container story: FAILED: $*" >&2
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

# job ARGS...: run a container that is gone afterwards
job() { "$CONTAINER" run --rm --name "$name-job" "$@"; }

train() {
  job "${hardened[@]}" --tmpfs /tmp --network none -v "$name-data:/data:ro" -v "$name-work:/work" \
    -v "$name-models:/models" "$training" "$@"
}

healthy() { "$CONTAINER" exec "$name-server" "${healthcheck[@]}" 2>&1; }

step "build the serving image"
"$CONTAINER" build -f docker/serving.Dockerfile -t "$serving" .

step "the serving image: a numeric user, no torch, no compiler, the health check"
user=$("$CONTAINER" image inspect --format '{{.Config.User}}' "$serving")
[ "$user" = 65532:65532 ] || fail "the image's user is '$user'"
job -i "${hardened[@]}" --entrypoint python "$serving" - <<'PYTHON' || fail "the serving image holds what it should not"
import importlib.util, os, shutil
assert (os.getuid(), os.getgid()) == (65532, 65532), os.getuid()
for package in ("torch", "pip", "setuptools"):
    assert importlib.util.find_spec(package) is None, package
for tool in ("cc", "gcc", "g++", "clang", "make"):
    assert shutil.which(tool) is None, tool
PYTHON
healthcheck=(python /opt/evalmode/healthcheck.py)
"$CONTAINER" image inspect "$serving" | grep -F '"/opt/evalmode/healthcheck.py"' >/dev/null || fail "no HEALTHCHECK"

step "the serving image without a model: exit 2, saying what is missing"
code=0
said=$(job "${hardened[@]}" "$serving" 2>&1) || code=$?
echo "$said"
[ "$code" = 2 ] || fail "exit code $code"
[[ $said == *"/models holds no "* ]] || fail "it does not say what is missing"

step "build the training image"
"$CONTAINER" build -f docker/training.Dockerfile -t "$training" .

step "write scikit-learn's digits as a folder of images"
job -i -v "$name-data:/work" --entrypoint python "$training" - <<'PYTHON'
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for index, (pixels, label) in enumerate(zip(digits.images, digits.target)):
    path = Path("test" if index % 5 == 0 else "train", str(label), f"{index:04d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)
PYTHON

step "train, without a network"
train train /data --out run --epochs 4

step "export and publish"
exported=$(train export run --repository /models --name digits)
echo "$exported"
accuracy=$(awk '$1 == "accuracy" {print $2}' <<<"$exported")
[[ $accuracy =~ ^(0\.[5-9]|1\.0) ]] || fail "accuracy '$accuracy' on the test images"

step "the health check fails where no server is"
port=$(job --network host --entrypoint python "$serving" -c \
  'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
code=0
job --network host -e "EVALMODE_SERVE_PORT=$port" --entrypoint "${healthcheck[0]}" "$serving" "${healthcheck[1]}" ||
  code=$?
[ "$code" = 1 ] || fail "exit code $code"

step "serve on port $port, everything read-only"
"$CONTAINER" run -d --name "$name-server" "${hardened[@]}" --network host -v "$name-models:/models:ro" \
  -e "EVALMODE_SERVE_PORT=$port" -e EVALMODE_SERVE_LAME_DUCK=1 "$serving"
deadline=$((SECONDS + 60))
until said=$(healthy); do
  if [ "$SECONDS" -ge "$deadline" ]; then
    "$CONTAINER" logs "$name-server"
    fail "not healthy after 60 s: $said"
  fi
  sleep 0.5
done

step "predict the test images through the server"
answers=$(job --network host -v "$name-data:/data:ro" "$serving" \
  predict /data/test --address "127.0.0.1:$port" --csv --top-k 1 2>&1)
tail -3 <<<"$answers"
[[ $answers == *"accuracy $accuracy: "* ]] || fail "the export measured $accuracy on the same images"

step "SIGTERM: drain and exit 0"
"$CONTAINER" stop -t 60 "$name-server" >/dev/null
logs=$("$CONTAINER" logs "$name-server" 2>&1)
echo "$logs"
code=$("$CONTAINER" inspect --format '{{.State.ExitCode}}' "$name-server")
[ "$code" = 0 ] || fail "exit code $code"
! grep -iE 'traceback|telemetry' <<<"$logs" || fail "the server's log says what it should not"

echo "container story: passed"
