"""The ``evalmode`` command, and ``python -m serving``: whatever happens from here on ends in an exit code."""

import os
import sys

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main() -> None:
    """The console script's entry point. Nothing is imported before an interrupt would be caught."""
    try:
        if sys.getfilesystemencoding() != "utf-8":
            _start_again()
        from serving.commands.main import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("evalmode: interrupted\n")
        sys.exit(INTERRUPTED)


def _start_again() -> None:
    """Go on in Python's UTF-8 mode: names of folders become labels, which are UTF-8 whatever the locale is.

    Python 3.15 has this mode by default (PEP 686), earlier ones in the C locale.
    """
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606


if __name__ == "__main__":
    main()
