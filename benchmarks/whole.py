"""Runs the measurements of all published results, one after the other, from one commit.

    python -m benchmarks.whole --out FOLDER [--trashnet DIR] [--cifar10 DIR] [--peer NAME=PYTHON]... [NAME...]
    python -m benchmarks.whole --list

The shortest come first. A result becomes FOLDER/DATE-NAME.json. One that FOLDER contains, of the same commit, versions
and processor, is not measured again: an interrupted call is continued by the same command. FOLDER/work holds what is
unfinished, the output of each benchmark, and what several need. A measurement whose needs are missing is skipped. A
failed one does not stop the others. Exit 1 if one failed, or a requirement is not met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.inputs import ABOUT, KERAS, SERVERS, Inputs
from benchmarks.measurements import MEASUREMENTS, Measurement
from benchmarks.measuring import Ended, find_measured, measure
from benchmarks.processes import ROOT
from benchmarks.record import name_commit, take_stamp


def main() -> None:
    """Run the measurements, and list those that failed."""
    arguments = parse_arguments()
    chosen = {name: MEASUREMENTS[name] for name in arguments.names or MEASUREMENTS}
    ordered = dict(sorted(chosen.items(), key=lambda item: item[1].minutes))
    if arguments.list:
        show(ordered)
        return
    inputs = prepare(arguments)
    failed: dict[str, Ended] = {}
    for name, measurement in ordered.items():
        if found := find_measured(arguments.out, name):
            print(f"{name}: measured, {found.name}", flush=True)
        elif missing := inputs.list_missing(measurement):
            print(f"{name}: skipped, {'; '.join(missing)}", flush=True)
        else:
            ended = measure(name, measurement, inputs, arguments.out)
            print(f"{name}: {ended.minutes:.1f} minutes, exit code {ended.code}", flush=True)
            if ended.code or not ended.complete:
                failed[name] = ended
    for name, ended in failed.items():
        kept = "a requirement is not met" if ended.complete else "no result"
        print(f"FAILED {name}: {kept}; {ended.line or 'no output'}")
    sys.exit(bool(failed))


def parse_arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="these results alone")
    parser.add_argument("--list", action="store_true", help="show the results, their commands, minutes and needs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the results, outside the checkout")
    parser.add_argument("--trashnet", type=Path, metavar="DIR", help=ABOUT["trashnet"])
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help=ABOUT["cifar10"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="may be given again")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - MEASUREMENTS.keys()):
        parser.error(f"no result is named {', '.join(unknown)}: see --list")
    if not arguments.list and not arguments.out:
        parser.error("--out FOLDER is needed, or --list")
    for peer in arguments.peer:
        if peer.partition("=")[0] not in (KERAS, *SERVERS) or not peer.partition("=")[2]:
            parser.error(f"--peer {peer} is not NAME=PYTHON with a NAME of {', '.join((KERAS, *SERVERS))}")
    for folder in (arguments.trashnet, arguments.cifar10):
        if folder and not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    return arguments


def prepare(arguments: argparse.Namespace) -> Inputs:
    """Check that the checkout can be measured, and create the folders.

    Raises:
        SystemExit: It cannot.
    """
    stamp = take_stamp()
    if not stamp.commit or stamp.dirty:
        state = name_commit(asdict(stamp))
        raise SystemExit(f"this checkout is at {state}: results must name a commit; measure a clone without changes")
    if arguments.out.resolve().is_relative_to(ROOT.resolve()):
        raise SystemExit(f"{arguments.out} is in the checkout, which must stay without changes: name another folder")
    work = arguments.out.resolve() / "work" / stamp.commit[:8]
    work.mkdir(parents=True, exist_ok=True)
    given = {"trashnet": arguments.trashnet, "cifar10": arguments.cifar10}
    folders = {name: folder.resolve() for name, folder in given.items() if folder}
    peers = (peer.split("=", 1) for peer in arguments.peer)
    return Inputs(work, stamp.commit, folders, {name: str(Path(python).absolute()) for name, python in peers})


def show(measurements: Mapping[str, Measurement]) -> None:
    """Print results, each with its commands, the minutes that it takes, and its needs.

    Args:
        measurements: The measurements by the names of their results.
    """
    table = Table("result", "python -m benchmarks.", "minutes", "needs", box=box.SIMPLE_HEAD)
    for name, one in measurements.items():
        commands = "\n".join(f"{one.module} {text}".strip() for text in one.arguments)
        needs = "; ".join((*one.programs, *(ABOUT[need] for need in one.list_inputs())))
        table.add_row(name, escape(commands), f"{one.minutes:g}", escape(needs.replace("`", "")))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(f"{sum(one.minutes for one in measurements.values()):g} minutes in all, on two cores")


if __name__ == "__main__":
    main()
