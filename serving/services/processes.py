"""The process metrics of prometheus_client, for a server of one or several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
OWN = ("process_start_time_seconds", "process_max_fds")  # those of the first process; all others are sums


class ProcessMetrics(Collector):
    """Collects the metrics of processes, as a collector of prometheus_client. The CPU time never decreases.

    Args:
        list_processes: Returns the numbers of the processes, of which the first one stays the same.
    """

    def __init__(self, list_processes: Callable[[], Iterable[int]]) -> None:
        self._list_processes = list_processes
        self._cpu_s: dict[int, float] = {}  # by process, also of processes that have ended

    def collect(self) -> Iterator[Any]:
        """Yield every metric with its current value."""
        sums: dict[str, tuple[str, float]] = {}
        for number in self._list_processes():
            for family in ProcessCollector(pid=partial(int, number), registry=None).collect():
                value = family.samples[0].value
                if family.name == CPU:
                    self._cpu_s[number] = value
                help_text, before = sums.get(family.name, (family.documentation, 0.0))
                sums[family.name] = (help_text, before if family.name in OWN and before else before + value)
        for name, (help_text, value) in sums.items():
            if name == CPU:
                yield CounterMetricFamily(name, help_text, sum(self._cpu_s.values()))
            else:
                yield GaugeMetricFamily(name, help_text, value)
