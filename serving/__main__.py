"""The ``evalmode`` command, and ``python -m serving``: whatever happens from here on ends in an exit code."""

import os
import sys

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it
UTF8_MODE = ("-X", "utf8")


def main(*command: str) -> None:
    """The console script's entry point. Nothing is imported before an interrupt would be caught.

    Args:
        *command: which command it is, where the command line does not say it.
    """
    try:
        import signal

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # quickstart holds it back until here
        if sys.getfilesystemencoding() != "utf-8" and tuple(sys.orig_argv[1:3]) != UTF8_MODE:
            _start_again()
        from serving.commands.main import main as run

        run([*command, *sys.argv[1:]])
    except KeyboardInterrupt:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one would interrupt what follows with a traceback
        if sys.stderr is not None:
            sys.stderr.write("evalmode: interrupted\n")
        sys.exit(INTERRUPTED)


def _start_again() -> None:
    """Go on in Python's UTF-8 mode: names of folders become labels, which are UTF-8 whatever the locale is.

    Python 3.15 has this mode by default (PEP 686), earlier ones in the C locale. It is asked for by an option, which
    holds before a later ``-X utf8=0`` and with ``-E`` and ``-I``, and by a variable for the processes that are started.
    """
    environment = {**os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *UTF8_MODE, *sys.orig_argv[1:]], environment)  # noqa: S606


if __name__ == "__main__":
    main()
