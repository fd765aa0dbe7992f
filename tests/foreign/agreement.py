"""How the answers of certified networks agree with those of the libraries that made them.

    python tests/foreign/make_photos.py TRASHNET PHOTOS
    python tests/foreign/makers/NAME.py PHOTOS OUT/NAME  # in the environment of the library, for each maker
    PYTHONPATH=. python tests/foreign/agreement.py PHOTOS OUT/NAME... --json tests/foreign/agreement.json

Each network is certified by ``evalmode certify``, with the options that its maker names, served by ``evalmode serve``,
and asked for every photo through gRPC. The exit code is 1 if a network misses ``MAX_DIFFERENCE`` or a label.
``--keep FOLDER`` copies small networks and their answers for the small photos, for the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from evalmode import Client

MAX_DIFFERENCE = 1e-3  # of a probability
NEAR_TIE = 2e-3  # the difference of the two best probabilities
MAX_KEPT_BYTES = 1_572_864  # of a network that is kept for the tests


@dataclass(frozen=True)
class Answers:
    """What a library answers.

    Attributes:
        names: N paths, relative to the folder of photos.
        labels: K labels in the order of the columns.
        probabilities: float32 (N, K).
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How the answers of a server agree with those of a library.

    Attributes:
        maker: The name of its folder.
        packages: The versions of the packages that made it, by name; the first is the library.
        options: The options that were typed.
        error: Why it could not be certified; "" if it was.
        photos: How many were compared.
        equal: How many have the same most probable label.
        near_ties: How many of the others are near ties.
        largest: The largest difference of a probability.
    """

    maker: str
    packages: dict[str, str]
    options: list[str]
    error: str = ""
    photos: int = 0
    equal: int = 0
    near_ties: int = 0
    largest: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether all labels are equal except near ties, and the probabilities within ``MAX_DIFFERENCE``."""
        return not self.error and self.equal + self.near_ties == self.photos and self.largest <= MAX_DIFFERENCE


def read_answers(path: Path) -> Answers:
    """Read the file ``answers.npz`` of a maker."""
    with np.load(path) as arrays:
        names, labels = (tuple(map(str, arrays[name])) for name in ("names", "labels"))
        return Answers(names, labels, arrays["probabilities"])


def read_made(out: Path) -> tuple[dict[str, str], list[str]]:
    """The packages and the options of ``options.json``, which may be a bare list of options."""
    made = json.loads((out / "options.json").read_text())
    return ({}, made) if isinstance(made, list) else (made.get("packages", {}), made["options"])


def certify(out: Path, photos: Path, repository: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Certify the network of a maker by the command.

    Args:
        out: The folder of the maker; paths of its options are relative to it.
        photos: A folder of photos, ``<label>/<photo>``.
        repository: The model repository.
        name: The name of the model.
    """
    given = ["--images", str(photos.absolute()), "--repository", str(repository.absolute()), "--name", name]
    command = [sys.executable, "-P", "-m", "evalmode", "certify", "network", *given, *read_made(out)[1]]
    return subprocess.run(command, cwd=out, capture_output=True, text=True)


@contextmanager
def serve(repository: Path) -> Iterator[str]:
    """Run ``evalmode serve`` on a free port, and return its address."""
    command = [sys.executable, "-P", "-m", "evalmode", "serve", "--repository", str(repository), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command += ["--no-metrics", "--lame-duck", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().split()[-1]}"
    finally:
        process.terminate()
        process.communicate()


def ask(address: str, photos: Path, name: str, answers: Answers) -> np.ndarray:
    """Ask a server about the photos of a library's answers.

    Returns:
        Probabilities, float32 (N, K), in the order of the answers.
    """
    rows = []
    with Client(address, timeout_s=60) as client:
        for photo in answers.names:
            found = client.predict(photos / photo, model=name, top_k=len(answers.labels)).scores
            by_label = {one.label: one.probability for one in found}
            rows.append([by_label[label] for label in answers.labels])
    return np.array(rows, np.float32)


def compare(out: Path, answers: Answers, served: np.ndarray) -> Agreement:
    """Compare the answers of a server with those of a library.

    Args:
        out: The folder of the maker.
        answers: Those of the library.
        served: Probabilities, float32 (N, K).
    """
    packages, options = read_made(out)
    ordered = np.sort(answers.probabilities, axis=1)
    equal = served.argmax(axis=1) == answers.probabilities.argmax(axis=1)
    near = ~equal & (ordered[:, -1] - ordered[:, -2] < NEAR_TIE)
    largest = float(np.abs(served - answers.probabilities).max())
    counts = (len(served), int(equal.sum()), int(near.sum()))
    return Agreement(out.name, packages, options, "", *counts, largest)


def measure(outs: list[Path], photos: Path) -> list[Agreement]:
    """Certify the networks, serve them, and compare their answers.

    Args:
        outs: The folders of the makers.
        photos: The folder of photos.
    """
    found = []
    with TemporaryDirectory() as folder:
        repository = Path(folder)
        refused = {}
        for out in outs:
            done = certify(out, photos, repository, out.name)
            print(f"{out.name}: {done.stdout}{done.stderr}", flush=True)
            if done.returncode:
                refused[out] = done.stderr.strip().splitlines()[-1]
        if len(refused) == len(outs):
            return [Agreement(out.name, *read_made(out), refused[out]) for out in outs]
        with serve(repository) as address:
            for out in outs:
                if out in refused:
                    found.append(Agreement(out.name, *read_made(out), refused[out]))
                    continue
                answers = read_answers(out / "answers.npz")
                found.append(compare(out, answers, ask(address, photos, out.name, answers)))
    return found


def keep(out: Path, folder: Path) -> None:
    """Copy the files of a maker for the tests, with its answers for the small photos, unless they are too large."""
    kept_out = folder / out.name
    shutil.rmtree(kept_out, ignore_errors=True)
    shutil.copytree(out, kept_out, ignore=shutil.ignore_patterns("answers.npz"))
    for path in kept_out.rglob("*.onnx"):
        strip_paths(path)
    size = sum(path.stat().st_size for path in kept_out.rglob("*") if path.is_file())
    if size > MAX_KEPT_BYTES:
        print(f"{out.name}: {size:,} bytes are not kept, at most {MAX_KEPT_BYTES:,} are")
        shutil.rmtree(kept_out)
        return
    answers = read_answers(out / "answers.npz")
    small = [index for index, name in enumerate(answers.names) if Path(name).name.startswith("small-")]
    names, labels = np.array(answers.names)[small], np.array(answers.labels)
    np.savez(kept_out / "answers.npz", names=names, labels=labels, probabilities=answers.probabilities[small])


def strip_paths(path: Path) -> None:
    """Remove the lines of source files that torch writes to each node: they name folders of this machine."""
    network = onnx.load(path)
    for node in network.graph.node:
        node.ClearField("metadata_props")
    for value in network.graph.value_info:
        value.ClearField("metadata_props")
    onnx.save(network, path)


def write_json(found: list[Agreement], path: Path) -> None:
    """Write the agreements as JSON, with those of other makers that are in the file."""
    rows = {row["maker"]: row for row in json.loads(path.read_text())["makers"]} if path.exists() else {}
    rows |= {one.maker: asdict(one) for one in found}
    facts = {"evalmode": version("evalmode"), "makers": [rows[name] for name in sorted(rows)]}
    path.write_text(json.dumps(facts, indent=1) + "\n")


def show(found: Agreement) -> str:
    """One line of the table."""
    if found.error:
        return f"{found.maker:<16} {found.error}"
    ties = f" and {found.near_ties} near ties" if found.near_ties else ""
    typed = shlex.join(found.options) or "no options"
    counts = f"{found.equal} of {found.photos}{ties}"
    return f"{found.maker:<16} {counts}, {found.largest:.1e} at most{'' if found.holds else ' MISSED'}; {typed}"


def main() -> int:
    """Print the table, and write it as JSON.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("outs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    found = measure(given.outs, given.photos)
    print(*map(show, found), sep="\n")
    if given.json:
        write_json(found, given.json)
    for out in given.outs if given.keep else ():
        keep(out, given.keep)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
