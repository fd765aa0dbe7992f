"""What measurements need: data sets, interpreters of peers, programs, and a trained run that is made once for all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measurements import Measurement
from benchmarks.processes import ROOT, list_command, make_environment
from training.errors import RunError
from training.run_metrics import RunMetrics

KERAS, SERVERS = "keras", ("mlserver", "kserve", "pytriton", "mosec")
BEFORE = "553893a"  # before both transports shared the scheduler
SEEDS = (0, 1, 2)
ABOUT = {
    "trashnet": "`--trashnet`: TrashNet as `<label>/<photo>.jpg`",
    "cifar10": "`--cifar10`: CIFAR-10 as `train/<label>/<image>` and `test/<label>/<image>`",
    "keras": "`--peer keras=PYTHON`",
    "peers": f"`--peer NAME=PYTHON` for {', '.join(SERVERS)}",
    "image": "the serving image of this commit",
    "before": f"the history back to {BEFORE}",
    "run": "a run of photos, which is trained first",
    "runs": "three runs of photos, which are trained first",
    "artifact": "the artifact of a run of photos, which is exported first",
    "photo": "a photo of TrashNet",
}


@dataclass(frozen=True)
class Inputs:
    """The inputs of this machine. What is made stays in ``work``, so that a later call goes on.

    Attributes:
        work: The folder of what is made, of one commit.
        commit: The commit.
        folders: The folder of each data set that was given.
        peers: The interpreter of each peer that was given.
    """

    work: Path
    commit: str
    folders: Mapping[str, Path]
    peers: Mapping[str, str]

    def list_missing(self, measurement: Measurement) -> list[str]:
        """Say what a measurement needs and this machine does not have.

        Args:
            measurement: The measurement.
        """
        programs = [f"{program} is not installed" for program in measurement.programs if not is_installed(program)]
        return programs + [missing for name in measurement.list_inputs() for missing in self._list_missing(name)]

    def find(self, name: str) -> list[str]:
        """Find the words that an input stands for; make it first if it can be made.

        Args:
            name: A key of ``ABOUT``.

        Raises:
            subprocess.CalledProcessError: It cannot be made.
        """
        make: dict[str, Callable[[], Iterable[object]]] = {
            "trashnet": lambda: [self._link("trashnet")],
            "cifar10": lambda: [self._link("cifar10")],
            "keras": lambda: [self.peers[KERAS]],
            "peers": lambda: [f"{server}={self.peers[server]}" for server in SERVERS],
            "image": lambda: [self._image],
            "before": lambda: [self._check_out()],
            "run": lambda: [self._train(SEEDS[0])],
            "runs": lambda: map(self._train, SEEDS),
            "artifact": lambda: [self._export()],
            "photo": lambda: [min(self.folders["trashnet"].glob("*/*.jpg"))],
        }
        return list(map(str, make[name]()))

    def _list_missing(self, name: str) -> list[str]:
        data = name if name in ("trashnet", "cifar10") else "trashnet"
        if name == "keras":
            return [] if KERAS in self.peers else ["no --peer keras=PYTHON"]
        if name == "peers":
            return [f"no --peer {server}=PYTHON" for server in SERVERS if server not in self.peers]
        if name == "before":
            known = succeeds("git", "-C", ROOT, "cat-file", "-e", f"{BEFORE}^{{commit}}")
            return [] if known else [f"no commit {BEFORE} in this clone"]
        if name == "image":
            engine = os.environ.get("CONTAINER", "docker")
            build = f"{engine} build -f docker/serving.Dockerfile -t {self._image} ."
            return [] if succeeds(engine, "image", "inspect", self._image) else [f"no image: {build}"]
        return [] if data in self.folders else [f"no --{data} DIR"]

    @property
    def _image(self) -> str:
        return f"evalmode-serving:{self.commit[:8]}"

    def _link(self, name: str) -> Path:
        """Link a data set under its name, which results state."""
        link = self.work / name
        link.unlink(missing_ok=True)
        link.symlink_to(self.folders[name].resolve(), target_is_directory=True)
        return link

    def _check_out(self) -> Path:
        checkout = self.work / "before"
        if not checkout.exists():
            run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(checkout)])
        run(["git", "-C", str(checkout), "checkout", "--quiet", BEFORE])
        return checkout

    def _train(self, seed: int) -> Path:
        """Train a run of photos without options but the seed, or go on with it."""
        out = self.work / f"photos-{seed}"
        try:
            RunMetrics(out / "metrics.jsonl").read_result()
        except RunError:
            begun = ["--resume"] if (out / "run.json").exists() else []
            data = self._link("trashnet")
            run(list_command("evalmode", "train", data, "--out", out, "--seed", seed, "--no-report", *begun))
        return out

    def _export(self) -> Path:
        repository = self.work / "models"
        path = repository / "photos" / "1" / "model.onnx"
        if not path.exists():
            trained = self._train(SEEDS[0])
            run(list_command("evalmode", "export", trained, "--repository", repository, "--name", "photos"))
        return path


def is_installed(program: str) -> bool:
    """Whether a program is in this environment, or on the PATH.

    Args:
        program: Its name.
    """
    return bool(shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program))


def succeeds(*command: object) -> bool:
    """Whether a command exists and exits with 0.

    Args:
        command: Its words.
    """
    try:
        return subprocess.run(list(map(str, command)), capture_output=True).returncode == 0
    except OSError:
        return False


def run(command: Iterable[str]) -> None:
    """Run a command that must succeed, in the root of the repository.

    Args:
        command: Its words.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    subprocess.run(list(command), check=True, cwd=ROOT, env=make_environment())
