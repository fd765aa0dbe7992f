#!/usr/bin/env bash
# Tests the containers: builds both images, trains, publishes, serves on a read-only root, with TLS, in little memory and
# with few CPUs, predicts, stops.
#
#   CONTAINER      docker, or a command with docker's arguments (default docker)
#   TAG            tag of the two images (default test)
#   REMOVE_IMAGES  1: remove the two images at the end
#
# All data are in named volumes, as in compose.yaml, so that this also tests their owners. What depends on a limit that
# the engine does not enforce is not tested; the last line says so.
set -euo pipefail
cd "$(dirname "$0")/.."

CONTAINER=${CONTAINER:-docker}
TAG=${TAG:-test}
serving=evalmode-serving:$TAG
training=evalmode-training:$TAG
name=evalmode-test-$$
small=(--memory 256m --memory-swap 256m) # no swap
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges)
healthcheck=(python /opt/evalmode/healthcheck.py)
not_tested=

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

# What a list of contents must name: every package that is installed, and the version that the label says.
contents='
import json, sys
from importlib.metadata import distributions
from pathlib import Path

listed = {one["name"]: one["version"] for one in json.loads(Path("/opt/evalmode/sbom.cdx.json").read_text())["components"]}
assert listed == {one.metadata["Name"]: one.version for one in distributions()}, listed
assert listed["evalmode"] == sys.argv[1], (listed["evalmode"], sys.argv[1])
'

step "both images: a numeric user, labels"
for image in "$serving" "$training"; do
  user=$("$CONTAINER" image inspect --format '{{.Config.User}}' "$image")
  [ "$user" = 65532:65532 ] || fail "the user of $image is '$user'"
  for label in title description licenses version; do
    value=$("$CONTAINER" image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$label\"}}" "$image")
    [ -n "$value" ] || fail "the label $label of $image is empty"
  done
done
version=$value

step "the serving image: no torch, pip, package manager, shell or compiler; a health check that fails without a server"
"$CONTAINER" image inspect "$serving" | grep -F '"/opt/evalmode/healthcheck.py"' >/dev/null || fail "no HEALTHCHECK"
said=$(
  job -i "${hardened[@]}" --network host --entrypoint python "$serving" - "$contents" "$version" <<'PYTHON'
import importlib.util, os, shutil, socket, subprocess, sys
from pathlib import Path

assert (os.getuid(), os.getgid()) == (65532, 65532), os.getuid()
for package in ("torch", "pip", "setuptools", "ensurepip"):
    assert importlib.util.find_spec(package) is None, package
    outside = [os.path.realpath(sys.executable), "-I", "-c", f"import {package}"]
    assert subprocess.run(outside, stderr=subprocess.DEVNULL).returncode == 1, package
for tool in ("sh", "bash", "dash", "rbash", "pip", "apt", "apt-get", "dpkg", "cc", "gcc", "g++", "clang", "make"):
    assert shutil.which(tool, path=os.defpath + ":" + os.environ["PATH"]) is None, tool
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)  # the list of contents
assert Path("/var/lib/dpkg/status").stat().st_size, "scanners cannot list Debian's packages"
with socket.socket() as free, socket.socket() as other:
    free.bind(("", 0))
    other.bind(("", 0))
    ports = [str(one.getsockname()[1]) for one in (free, other)]
environment = {**os.environ, "EVALMODE_SERVE_PORT": ports[0], "EVALMODE_SERVE_METRICS_PORT": ports[1]}
check = subprocess.run([sys.executable, "/opt/evalmode/healthcheck.py"], env=environment, stdout=sys.stderr)
assert check.returncode == 1, check.returncode
print(*ports, len(os.sched_getaffinity(0)))
PYTHON
) || fail "the serving image is not as expected"
read -r port metrics_port processors <<<"$said"

step "the serving image without a model: exits with 2 and names what is missing"
code=0
said=$(job "${hardened[@]}" "$serving" 2>&1) || code=$?
echo "$said"
[ "$code" = 2 ] || fail "exit code $code"
[[ $said == *"/models holds no "* ]] || fail "the error does not name what is missing"

step "the serving image: every command has help, and commands that need torch name the extra"
job -i "${hardened[@]}" --entrypoint python "$serving" - <<'PYTHON' || fail "a command has no help, or train does not name the extra"
import os, subprocess
from concurrent.futures import ThreadPoolExecutor

from evalmode.cli.main import COMMANDS


def run(*arguments):
    return subprocess.run(["evalmode", *arguments], capture_output=True, text=True)


with ThreadPoolExecutor(os.cpu_count()) as pool:
    codes = dict(zip(COMMANDS, pool.map(lambda name: run(name, "--help").returncode, COMMANDS)))
assert {"train", "serve", "predict"} <= codes.keys() and not any(codes.values()), codes
train = run("train", "digits", "--out", "/tmp/run")
assert train.returncode == 2, train
assert train.stderr.startswith("evalmode: train needs the Python package "), train
assert "'evalmode[serve,train]'" in train.stderr, train
PYTHON

step "write JPEG files of three colours as a folder of images, and a certificate"
job -i "${hardened[@]}" -v "$name-data:/models" --entrypoint python "$serving" - <<'PYTHON'
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for label, colour in {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}.items():
    for split, count in {"train": 60, "test": 20}.items():
        folder = Path("/models/images", split, label)
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(rng.normal(colour, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
Path("/models/tls").mkdir()
request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
names = "-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout /models/tls/key.pem -out /models/tls/cert.pem"
subprocess.run([*request.split(), *names.split()], check=True, stderr=subprocess.DEVNULL)
PYTHON

step "train on the folder and publish, without network, on a read-only root"
exported=$(
  job "${hardened[@]}" --tmpfs /tmp --network none -v "$name-data:/data:ro" -v "$name-work:/work" \
    -v "$name-models:/models" --entrypoint sh "$training" -euc '
      evalmode train /data/images --out run --epochs 8
      evalmode export run --repository /models --name colours
      python -c "$1" "$2"' sh "$contents" "$version"
)
echo "$exported"
accuracy=$(awk '$1 == "accuracy" {print $2}' <<<"$exported")
[[ $accuracy =~ ^(0\.[5-9]|1\.0) ]] || fail "accuracy '$accuracy' on the test images"

step "train in two processes"
together=$(
  job "${hardened[@]}" --tmpfs /tmp --network none -v "$name-data:/data:ro" --entrypoint torchrun "$training" \
    --nproc-per-node 2 -m evalmode train /data/images --out /tmp/run --epochs 1
)
[[ $together == *"on cpu in 2 processes"*"run       /tmp/run"* ]] || fail "two processes: $together"

step "limits that this engine enforces"
code=0
said=$(job "${small[@]}" --cpus 0.5 --entrypoint python "$serving" -c '
import time
from pathlib import Path

started = time.monotonic()
while time.monotonic() < started + 2: pass
places = [Path("/sys/fs/cgroup", name) for name in ("cpu.max", "cpu/cpu.cfs_quota_us")]
quotas = [place.read_text().split()[0] for place in places if place.exists()]
print(round(time.process_time() / 2, 2), *quotas, flush=True)
b"x" * 2**29') || code=$?
[ -s oom ] || rm -f oom # podman's monitor leaves this empty file here
read -r share quota <<<"$said"
[ "$code" = 137 ] || not_tested+=" --memory"
# On a busy machine the share is small without a limit, too.
{ [ "$quota" = 50000 ] && awk "BEGIN {exit !($share < 0.7)}"; } || not_tested+=" --cpus"
echo "under --cpus 0.5: $share CPUs, quota ${quota:-none}; above --memory 256m: exit code $code; not enforced:${not_tested:- none}"

# serve ARGS...: start a server with everything read-only, and wait until its health check passes
serve() {
  "$CONTAINER" run -d --name "$name-server" "${hardened[@]}" --network host -v "$name-models:/models:ro" \
    -v "$name-data:/data:ro" -e "EVALMODE_SERVE_PORT=$port" -e "EVALMODE_SERVE_METRICS_PORT=$metrics_port" \
    "$@" "$serving" >/dev/null
  local deadline=$((SECONDS + 60)) said
  until said=$(healthy); do
    if [ "$SECONDS" -ge "$deadline" ]; then
      "$CONTAINER" logs "$name-server"
      fail "not healthy after 60 s: $said"
    fi
    sleep 0.5
  done
}

# ask PATH: the answer to an HTTP request inside the container; of an error the status
ask() {
  "$CONTAINER" exec "$name-server" python -c "import urllib.error, urllib.request
try: print(urllib.request.urlopen('http://127.0.0.1:$metrics_port/$1').read().decode())
except urllib.error.HTTPError as error: print(error.code)"
}

# slots CPUS: the server has one slot for each of its CPUs, a part of one being one
slots() {
  [[ $not_tested != *--cpus* ]] || return 0
  local found expected=$(($1 < processors ? $1 : processors))
  found=$(ask metrics | awk '$1 == "evalmode_slots" {print int($2)}')
  [ "$found" = "$expected" ] || fail "'$found' slots, expected $expected"
}

# predict OPTIONS...: the test images through the server, whose accuracy is known
predict() {
  local answers
  answers=$(job --network host -v "$name-data:/data:ro" "$serving" \
    predict /data/images/test --address "127.0.0.1:$port" --csv --top-k 1 "$@" 2>&1)
  [[ $answers == *"accuracy $accuracy: "* ]] || fail "the export measured $accuracy on the same images: $answers"
}

# largest: images that need almost all memory that the server allows; no process of the container is killed
largest() {
  job -i --network host -v "$name-models:/models:ro" --entrypoint python "$serving" \
    - "127.0.0.1:$port" /models/colours/1/model.onnx <docker/largest_images.py || fail "see above"
  "$CONTAINER" exec -i "$name-server" python - <<'PYTHON' || fail "a process was killed for lack of memory"
import re
from pathlib import Path

root = Path("/sys/fs/cgroup")
peak, events = root / "memory.peak", root / "memory.events"
if not events.exists():  # cgroups v1
    peak, events = root / "memory/memory.max_usage_in_bytes", root / "memory/memory.oom_control"
print(f"peak {int(peak.read_text()) >> 20} MiB" if peak.exists() else "peak unknown: the kernel is older than 5.19")
assert re.search(r"^oom_kill 0$", events.read_text(), re.MULTILINE), events.read_text()
PYTHON
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

at_once=(-e EVALMODE_SERVE_LAME_DUCK=0)
native=(-e EVALMODE_SERVE_TRANSPORT=native -e EVALMODE_SERVE_ALLOW_UNBOUNDED_MESSAGES=1)

step "serve on port $port, everything read-only; alive and not ready while it drains"
serve -e EVALMODE_SERVE_LAME_DUCK=10
predict
! ask readyz | grep -q '^503$' || fail "/readyz is not 200"
"$CONTAINER" kill --signal TERM "$name-server" >/dev/null
until "$CONTAINER" logs "$name-server" 2>&1 | grep -q 'shutting down'; do sleep 0.1; done
healthy || fail "/livez fails while the server drains"
ask readyz | grep -q '^503$' || fail "/readyz is not 503 while the server drains"
"$CONTAINER" wait "$name-server" >/dev/null
stop

step "serve by two workers, with 2 CPUs"
serve "${at_once[@]}" --cpus 2 -e EVALMODE_SERVE_WORKERS=2
slots 2
predict
stop

step "serve by the native transport, with 1 CPU"
serve "${at_once[@]}" --cpus 1 "${native[@]}"
slots 1
predict
stop

step "serve with TLS, with half a CPU"
serve "${at_once[@]}" --cpus 0.5 -e EVALMODE_SERVE_TLS_CERT=/data/tls/cert.pem \
  -e EVALMODE_SERVE_TLS_KEY=/data/tls/key.pem
slots 1
predict --tls-ca /data/tls/cert.pem
stop

if [[ $not_tested != *--memory* ]]; then
  step "the largest images in 256 MiB"
  serve "${at_once[@]}" "${small[@]}"
  largest
  stop

  step "the largest images in 256 MiB by the native transport"
  serve "${at_once[@]}" "${small[@]}" "${native[@]}"
  largest
  stop
fi

step "container test: passed${not_tested:+; this engine does not enforce$not_tested, so what depends on it was not tested}"
