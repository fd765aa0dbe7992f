"""Publish hostile model files into a served repository: each must be refused with its reason, and no client affected.

    python -m benchmarks.soak.hostile_files --out FILE [--mutations 2000]

Needs strace for the mutations. An honest version is published together with each file; it must be served within 15 s,
while an endless file is on trial. Memory is that of the server and its children together, above that of the idle
server. At the end an endless file is on trial, and SIGTERM must stop the server. Exit code 1 if one of these fails.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.honest import Memory
from benchmarks.record import add_out, write_result
from benchmarks.servers import serving
from evalmode.artifact.publishing import publish
from evalmode.wire import open_inference_pb2 as wire
from evalmode.wire import open_inference_pb2_grpc as wire_grpc
from tests.conftest import colour_artifact
from tests.hostile import FILES, endless_loop

REFUSED_S = 60
HONEST_S = 15  # while an endless file is still on trial
MAX_MB = 1000
END_S = 2  # interpreter and sockets; the trial itself could take --load-seconds
MUTATE = """
import sys, os
import numpy as np
from evalmode.runtime.loading import load_artifact
from evalmode.runtime.session import open_cpu_session
from tests.hostile import mutate

rng, loaded = np.random.default_rng(1), 0
for number in range(int(sys.argv[1])):
    path, artifact = mutate(rng, "outside.bin")
    for load in (load_artifact, open_cpu_session):  # with our checks, and without
        try:
            load(artifact)
            loaded += load is load_artifact
        except Exception:
            pass
print(loaded)
"""


def main() -> None:
    """Publish the files, write and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_out(parser)
    parser.add_argument("--mutations", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files, end = drop_all(Path(name))
    results = {"files": files, "end": end, "mutations": trace_mutations(arguments.mutations)}
    write_result(arguments, results)
    held = all(
        one["refused_s"] <= REFUSED_S and one["honest_served"] and one["more_mb"] <= MAX_MB for one in files.values()
    )
    held &= end["exit_code"] == 0 and end["seconds"] <= END_S
    held &= not (results["mutations"]["loaded"] or results["mutations"]["opened"])
    sys.exit(0 if held else 1)


def drop_all(repository: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publish each file as a new version of one model, and with it an honest version of another model."""
    publish(repository, "honest", colour_artifact())
    publish(repository, "victim", colour_artifact())
    found: dict[str, Any] = {}
    with serving(repository, "--log-level", "error") as server, grpc.insecure_channel(server.address) as channel:
        stub = wire_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for name, build in FILES.items():
            hostile = build()
            with Memory(server.process.pid) as memory:
                started = time.monotonic()
                version = publish(repository, "victim", hostile).parent
                honest = publish(repository, "honest", colour_artifact()).parent.name
                served_s = refused_s = None
                reason = ""
                while time.monotonic() < started + 2 * REFUSED_S and (served_s is None or refused_s is None):
                    time.sleep(0.05)
                    for entry in stub.RepositoryIndex(wire.RepositoryIndexRequest(), timeout=5).models:
                        now = round(time.monotonic() - started, 2)
                        if (entry.name, entry.version) == ("honest", honest) and entry.state == "READY":
                            served_s = served_s or now
                        if (entry.name, entry.version) == ("victim", version.name):
                            waits = re.search("not loaded|is served|being checked", entry.reason)
                            if entry.reason and not waits and refused_s is None:
                                refused_s, reason = now, entry.reason
            found[name] = {
                "bytes": len(hostile),
                "refused_s": refused_s or 2 * REFUSED_S,
                "honest_served_s": served_s,
                "honest_served": served_s is not None and served_s <= HONEST_S,
                "more_mb": round(memory.most_mb - memory.idle_mb, 1),
                "reason": reason.replace(str(repository), "models"),
            }
            print(name, found[name], flush=True)
        publish(repository, "victim", endless_loop())
        process = psutil.Process(server.process.pid)
        while not process.children():
            time.sleep(0.05)
        time.sleep(2)  # so that the child is started
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        end = {"exit_code": server.process.wait(), "seconds": round(time.monotonic() - started, 2)}
    print("SIGTERM", end)
    return found, end


def trace_mutations(count: int) -> dict[str, int]:
    """Load artifacts with external data at every possible place, and list with strace the files that were opened."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, "outside.bin").write_bytes(bytes(16))
        trace = Path(name, "trace")
        command = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2,creat,readlink", "-o", str(trace)]
        done = subprocess.run(
            [*command, sys.executable, "-c", MUTATE, str(count)],
            cwd=name,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        opened = sum("outside.bin" in line for line in trace.read_text(errors="replace").splitlines())
    results = {"mutations": count, "loaded": int(done.stdout), "opened": opened}
    print(results)
    return results


if __name__ == "__main__":
    main()
