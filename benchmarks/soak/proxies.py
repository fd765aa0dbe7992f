"""Send constant load through each proxy of deploy/proxies while one of two servers drains, rolls and is killed.

    python -m benchmarks.soak.proxies --out benchmarks/results/DATE-proxies.json [--answers 2000]

It needs nginx, HAProxy and Envoy, which make test-proxies installs. Clients do not retry.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.record import add_out, write_result
from evalmode.artifact.publishing import publish
from tests.conftest import colour_artifact
from tests.deploy.load import Outcome, measure

NAMES = ("nginx", "haproxy", "envoy")


def main() -> None:
    """Measure each proxy, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_out(parser)
    parser.add_argument("--answers", type=int, default=2000, help="to wait for before and after each act")
    arguments = parser.parse_args()
    proxies = {}
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder, "models"), "colours", colour_artifact())
        for name in NAMES:
            own = Path(folder, name)
            own.mkdir()
            outcomes = measure(name, Path(folder, "models"), own, arguments.answers)
            proxies[name] = {event: describe(outcome) for event, outcome in outcomes.items()}
            print(name, proxies[name], flush=True)
    write_result(arguments, {"proxies": proxies})


def describe(outcome: Outcome) -> dict[str, Any]:
    """Sum the failures by their code: the details have ports in them."""
    failed = Counter[str]()
    for status, count in outcome.failed.items():
        failed[re.split(r"\W", status, maxsplit=1)[0]] += count
    return {**asdict(outcome), "failed": dict(failed)}


if __name__ == "__main__":
    main()
