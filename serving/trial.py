"""The process in which artifacts are tried, under limits: it loads what it is sent, and answers why not, or nothing.

``serving.trials`` starts it and speaks to it by a socket, which is its standard input.
"""

from __future__ import annotations

import re
import resource
import socket
import time
from pathlib import Path

from evalmode.errors import ArtifactInvalid, LoadLimitExceeded
from evalmode.runtime.loading import LoadOptions, load_artifact
from serving.trials import ORDER

FILE_FACTOR = 4  # an artifact is in memory about as often: as bytes, as messages, as weights, as weights packed
MAX_REASON = 1000  # characters: an error of onnxruntime may quote all that a hostile file says
_MEMORY = re.compile("bad_alloc|allocate memory|Unable to allocate|Arena alloc failed|MemoryError|Cannot allocate")


def main() -> None:
    """Try what is sent, one artifact after the other, until nothing more is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, this process goes and not the server
    with socket.socket(fileno=0) as orders:
        while order := orders.recv(ORDER.size, socket.MSG_WAITALL):
            size, seconds, load_bytes, allow_uncertified = ORDER.unpack(order)
            artifact = orders.recv(size, socket.MSG_WAITALL) if size else b""
            _set_limits(seconds, load_bytes + FILE_FACTOR * size)
            orders.sendall(_try(artifact, load_bytes, allow_uncertified).encode() + b"\n")


def _set_limits(seconds: int, more_bytes: int) -> None:
    """Limit CPU seconds and address space to what is used so far and this much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = {
        resource.RLIMIT_CPU: (int(time.process_time()) + 1, seconds),
        resource.RLIMIT_AS: (pages * resource.getpagesize(), more_bytes),
    }
    for kind, (used, more) in now.items():
        hard = resource.getrlimit(kind)[1]
        limit = used + more if hard == resource.RLIM_INFINITY else min(used + more, hard)
        resource.setrlimit(kind, (limit, hard))


def _try(artifact: bytes, load_bytes: int, allow_uncertified: bool) -> str:
    """Load an artifact: "", or the name of the error, a colon and the reason, in one line."""
    try:
        load_artifact(artifact, options=LoadOptions(allow_uncertified=allow_uncertified, arena=False))
    except (ArtifactInvalid, MemoryError) as error:
        if isinstance(error, MemoryError) or _MEMORY.search(f"{error!r} {error.__cause__!r}"):
            return (
                f"{LoadLimitExceeded.__name__}:checking and replaying it needs more memory than --load-bytes "
                f"{load_bytes} and {FILE_FACTOR} times its file: raise --load-bytes to serve it"
            )
        reason = "".join(sign if sign.isprintable() else " " for sign in str(error)[:MAX_REASON])
        return f"{type(error).__name__}:{reason}"
    return ""


if __name__ == "__main__":
    main()
