"""Starts child processes of a server: fresh interpreters, which inherit no thread and no lock."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def start_process(
    module: str, connection: socket.socket, stderr: int, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that runs the function ``main`` of a module.

    It imports the same ``serving`` package, and nothing else from its folder or from the current directory.

    Args:
        module: The name of the module.
        connection: The socket that becomes its standard input.
        stderr: The file descriptor that becomes its standard error, or ``subprocess.DEVNULL``.
        descriptors: Further file descriptors that it inherits.

    Raises:
        OSError: It cannot be started.
    """
    quiet = "import os; os.environ.setdefault('GRPC_VERBOSITY', 'ERROR'); "  # not that it ends its own connections
    start = (
        f"{quiet}import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import evalmode, serving; "
        f"del sys.path[0]; from {module} import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", start],
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=descriptors,
        start_new_session=True,  # no SIGINT from the terminal: the server ends its child processes itself
    )
