"""The ``evalmode`` command, and ``python -m serving``: whatever happens from here on ends in an exit code."""

import sys

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main() -> None:
    """The console script's entry point. Nothing is imported before an interrupt would be caught."""
    try:
        from serving.commands.main import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("evalmode: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
