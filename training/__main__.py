"""``python -m training``: ``evalmode train``, as torchrun starts it: ``torchrun --nproc-per-node 2 -m training``."""

import sys

from serving.commands.main import main

main(["train", *sys.argv[1:]])
