"""``python -m training``: ``evalmode train``, as torchrun starts it: ``torchrun --nproc-per-node 2 -m training``."""

from serving.__main__ import main

if __name__ == "__main__":
    main("train")
