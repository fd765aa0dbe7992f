"""The time and the memory that loading 20,000 photos takes, a pass over them in a random order, and a training.

    python -m benchmarks.speed.many_photos PHOTOS [--images N] [--image-size HxW] [--train OPTIONS] [--out FILE]

PHOTOS is a folder of <label>/<photo>.jpg. Its photos are multiplied by changes of one value in their quantization
table: every copy decodes to other pixels, and no photo has to be encoded again. They are written to a temporary folder,
which needs N times the size of a photo, and the pixels to a file there. With --train, ``evalmode train`` is then run
on them in a process of its own, with its options in one word: ``--train '--minutes 8'``. Exit 1 if more than 3 GB were
resident.

Resident memory includes pages of mapped files, which the system can drop at any time. The anonymous memory of the
training, which it cannot drop without swap space, is reported apart, sampled ten times a second. The peak of all
resident memory is the system's own record (VmHWM).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import add_out, write_result
from training.datasets import Dataset, ReadOptions, load_dataset, release_pages

MAX_RESIDENT_BYTES = 3_000_000_000
TABLE = b"\xff\xdb\x00\x43\x00"  # the marker, length and number of the first quantization table, 8 bits a value
BATCH = 32
SAMPLE_S = 0.1


def main() -> None:
    """Multiply the photos, load them, read all of them in a random order, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--image-size", default="224x224")
    parser.add_argument("--train", metavar="OPTIONS", help="train, too, with these options, such as '--minutes 8'")
    add_out(parser, required=False)
    arguments = parser.parse_args()
    height, width = map(int, arguments.image_size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        multiply(arguments.photos, Path(folder) / "photos", arguments.images)
        results = measure(Path(folder), (height, width))
        if arguments.train is not None:
            results["training"] = train(Path(folder), arguments.image_size, arguments.train)
    print(json.dumps(results, indent=1))
    write_result(arguments, results)
    trained = results.get("training", results)
    sys.exit(max(results["peak_resident_bytes"], trained["peak_resident_bytes"]) > MAX_RESIDENT_BYTES)


def multiply(source: Path, folder: Path, count: int) -> None:
    """Write ``count`` photos, all of other pixels, into the same folders of labels."""
    paths = sorted(source.glob("*/*.jpg"))
    for number, path in zip(range(count), itertools.cycle(paths), strict=False):
        content = bytearray(path.read_bytes())
        position = (
            content.index(TABLE) + len(TABLE) + 1 + number // len(paths) % 5
        )  # low frequencies, which photos have
        change = 1 + number // len(paths) // 5
        content[position] += change if content[position] < 128 else -change
        to = folder / path.parent.name / f"{path.stem}-{number}.jpg"
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(content)


def measure(folder: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Load the photos and read them once."""
    notices: list[str] = []
    before = measure_peak_bytes()
    seconds, cpu = time.perf_counter(), time.process_time()
    options = ReadOptions(size)
    dataset = load_dataset(str(folder / "photos"), options, cache=folder / "cache", notify=notices.append)
    loaded, loaded_cpu = time.perf_counter() - seconds, time.process_time() - cpu
    after_loading = measure_peak_bytes()
    seconds = time.perf_counter()
    digest = dataset.digest()
    digested = time.perf_counter() - seconds
    seconds = time.perf_counter()
    mean = read_randomly(dataset)
    return {
        "load_average": os.getloadavg()[0],
        "images": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "shape": dataset.contract.shape,
        "pixels_bytes": sum(getattr(dataset, name).images.nbytes for name in ("train", "val", "test")),
        "loading_s": loaded,
        "loading_cpu_s": loaded_cpu,
        "digest_s": digested,
        "random_pass_s": time.perf_counter() - seconds,
        "peak_resident_bytes_before": before,
        "peak_resident_bytes_after_loading": after_loading,
        "peak_resident_bytes": measure_peak_bytes(),
        "notices": [notice.replace(str(folder), "CACHE") for notice in notices],
        "warnings": [warning.replace(str(folder), "DATA") for warning in dataset.warnings],
        "digest": digest,
        "mean": mean,
    }


def read_randomly(dataset: Dataset) -> float:
    """Read all training images once, in batches of a random order, and return the mean of their values."""
    images = dataset.train.images
    rows = np.random.default_rng(0).permutation(len(images))
    means = []
    for start in range(0, len(rows), BATCH):
        means.append(images[rows[start : start + BATCH]].mean())
        release_pages(images)
    return float(np.mean(means))


def train(folder: Path, image_size: str, options: str) -> dict[str, Any]:
    """Train on the photos in a process of its own, and sample the memory of that process."""
    command = [
        sys.executable,
        "-m",
        "evalmode",
        "train",
        str(folder / "photos"),
        "--out",
        str(folder / "run"),
        "--json",
    ]
    command += ["--image-size", image_size, "--cache", str(folder / "cache"), *options.split()]
    started, peaks = time.perf_counter(), {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
    with (folder / "output").open("w+") as output, (folder / "lines").open("w+") as lines:
        process = subprocess.Popen(command, stdout=output, stderr=lines)
        while process.poll() is None:
            for name, size_bytes in read_memory(process.pid).items():
                peaks[name] = max(peaks[name], size_bytes)
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - started
        output.seek(0)
        lines.seek(0)
        if process.returncode:
            raise SystemExit(lines.read())
        found = json.loads(output.read())
        planned = [line.strip() for line in lines if "planned for" in line or "too short" in line]
    return {
        "options": options,
        "seconds": round(seconds, 1),
        "plan": planned,
        "stages": {stage["stage"]: round(stage["seconds"], 1) for stage in found["stages"]},
        "test_accuracy": found["test_accuracy"],
        "peak_resident_bytes": peaks["VmHWM"],
        "peak_anonymous_bytes": peaks["RssAnon"],
        "peak_mapped_files_bytes": peaks["RssFile"],
        "run_folder_bytes": sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file()),
    }


def read_memory(pid: int) -> dict[str, int]:
    """Read the memory of a process in bytes: the peak of the resident memory, and its anonymous and its file pages now.

    Args:
        pid: The process. If it has ended, there are no values.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    found = re.findall(r"^(VmHWM|RssAnon|RssFile):\s*(\d+) kB$", status, re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def measure_peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
