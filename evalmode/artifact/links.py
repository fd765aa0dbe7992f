"""Symbolic links on the way to a file: they must not lead out of the folder that the user named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from evalmode.errors import ArtifactInvalid

MAX_STEPS = 1000  # steps through symbolic links: the system itself follows 40 links


def check_links(root: Path, path: Path, follow: Sequence[Path] = ()) -> None:
    """Check that no symbolic link between a folder and a file leads out of the folder.

    Args:
        root: The folder. It may be a link itself.
        path: The file, below ``root``.
        follow: Other folders that links may lead into.

    Raises:
        ArtifactInvalid: A link leads out of all these folders, or there are too many links.
    """
    if link := _find_link_out(root, path, follow):
        target = Path(os.path.realpath(link))
        folder = target if target.is_dir() else target.parent
        raise ArtifactInvalid(
            f"{path} is outside the repository: {link} is a link to {link.readlink()}; publish a copy, or allow links "
            f"into a folder that contains it, such as --follow-links {folder}"
        )


def _find_link_out(root: Path, path: Path, follow: Sequence[Path]) -> Path | None:
    """Return the symbolic link by which a path leads out of all allowed folders; None if it stays inside.

    Folders are compared by device and inode, not by name: seen through the root of another process (/proc/PID/root)
    or a mount, a resolved path may be another folder.

    Raises:
        ArtifactInvalid: There are too many links.
    """
    homes = [(root, root.stat())]
    for folder in follow:
        with suppress(OSError):
            homes.append((folder, folder.stat()))
    place, depth, link = root, 0, root
    ahead = [*path.relative_to(root).parts][::-1]
    for _ in range(MAX_STEPS):
        if not ahead:
            return link if depth < 0 else None
        part = ahead.pop()
        place = place / part  # an absolute link starts with "/", which replaces the place
        status = place.stat()
        if home := next((folder for folder, known in homes if os.path.samestat(status, known)), None):
            place, depth = home, 0
        elif depth >= 0 and part not in ("..", "/") and place.is_symlink():
            link = place
            ahead.extend(place.readlink().parts[::-1])
            place = place.parent
        elif depth >= 0:  # once outside, the system follows the links
            depth = {"..": depth - 1, "/": -1}.get(part, depth + 1)
        if depth < 0 and follow:
            depth = _measure_depth(place, [known for _, known in homes])
    raise ArtifactInvalid(f"{path} has too many links")


def _measure_depth(place: Path, homes: Sequence[os.stat_result]) -> int:
    """Return how many levels a folder is below the nearest of some folders; -1 if it is in none, or is a file."""
    for depth in range(MAX_STEPS):
        try:
            status, above = place.stat(), (place / "..").stat()
        except OSError:
            return -1
        if any(os.path.samestat(status, home) for home in homes):
            return depth
        if os.path.samestat(status, above):
            return -1
        place = place / ".."
    return -1
