"""The child process that loads artifacts under resource limits, and reports whether they are valid.

``serving.trials`` starts it and communicates with it over a socket, which is its standard input.
"""

from __future__ import annotations

import re
import resource
import socket
import sys
import time
from pathlib import Path

from evalmode.errors import ArtifactInvalid, LoadLimitExceeded
from evalmode.runtime.loading import LoadOptions, load_artifact
from serving.trials import ORDER

FILE_FACTOR = 4  # copies of an artifact in memory: the bytes, the protobuf messages, the weights, the packed weights
MAX_REASON = 1000  # characters: an error of onnxruntime may quote the contents of the file
_MEMORY = re.compile("bad_alloc|allocate memory|Unable to allocate|Arena alloc failed|MemoryError|Cannot allocate")


def main() -> None:
    """Load one artifact after the other until the socket is closed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # out of memory, the kernel kills this process, not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    with socket.socket(fileno=0) as orders:
        while order := orders.recv(ORDER.size, socket.MSG_WAITALL):
            size, seconds, load_bytes, allow_uncertified = ORDER.unpack(order)
            artifact = orders.recv(size, socket.MSG_WAITALL) if size else b""
            _set_limits(seconds, load_bytes + FILE_FACTOR * size)
            orders.sendall(_try(artifact, load_bytes, allow_uncertified).encode() + b"\n")


def _set_limits(seconds: int, more_bytes: int) -> None:
    """Set the resource limits to the current usage plus a number of CPU seconds and, on Linux, bytes of memory."""
    now = {resource.RLIMIT_CPU: (int(time.process_time()) + 1, seconds)}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now[resource.RLIMIT_AS] = (pages * resource.getpagesize(), more_bytes)
    for kind, (used, more) in now.items():
        hard = resource.getrlimit(kind)[1]
        limit = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
        resource.setrlimit(kind, (limit, hard))


def _try(artifact: bytes, load_bytes: int, allow_uncertified: bool) -> str:
    """Load an artifact, and return "" if it is valid, otherwise the name of the error, a colon and the reason."""
    try:
        load_artifact(artifact, options=LoadOptions(allow_uncertified=allow_uncertified, arena=False))
    except (ArtifactInvalid, MemoryError) as error:
        if isinstance(error, MemoryError) or _MEMORY.search(f"{error!r} {error.__cause__!r}"):
            return (
                f"{LoadLimitExceeded.__name__}:checking and replaying it needs more memory than --load-bytes "
                f"{load_bytes} and {FILE_FACTOR} times its file: raise --load-bytes to serve it"
            )
        reason = "".join(one if one.isprintable() else " " for one in str(error)[:MAX_REASON])
        return f"{type(error).__name__}:{reason}"
    return ""


if __name__ == "__main__":
    main()
