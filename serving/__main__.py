"""``python -m serving``: the same as the ``evalmode`` command."""

from serving.commands.main import main

main()
