"""The ``evalmode`` command and ``python -m evalmode``. Whatever happens, the process ends with an exit code."""

import os
import sys

INTERRUPTED = 130  # 128 plus the number of SIGINT, as in shells
UTF8_MODE = ("-X", "utf8")


def main() -> None:
    """The entry point of the console script. An interrupt during the imports is handled, too."""
    try:
        import signal

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # evalmode quickstart blocks it until here
        if sys.getfilesystemencoding() != "utf-8" and tuple(sys.orig_argv[1:3]) != UTF8_MODE:
            _start_again()
        from evalmode.own_packages import prefer_own_packages

        prefer_own_packages()
        from evalmode.cli.main import main as run

        run(sys.argv[1:])
    except KeyboardInterrupt:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one would end what follows with a traceback
        if sys.stderr is not None:
            sys.stderr.write("evalmode: interrupted\n")
        sys.exit(INTERRUPTED)


def _start_again() -> None:
    """Restart in Python's UTF-8 mode: names of folders become labels, which are UTF-8 in any locale.

    Python 3.15 has this mode by default (PEP 686), earlier versions only in the C locale. The option takes precedence
    over a later ``-X utf8=0``, and works with ``-E`` and ``-I``; the variable is for child processes.
    """
    environment = {**os.environ, "PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *UTF8_MODE, *sys.orig_argv[1:]], environment)  # noqa: S606


if __name__ == "__main__":
    main()
