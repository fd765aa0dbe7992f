"""The default memory limits of decoding and requests: from cgroups of both versions, or from the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.engine.memory import MAX_DEFAULT_BYTES, MIB, choose_decode_bytes, choose_request_bytes, read_memory_limit


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{256 * MIB}\n"},
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": f"{256 * MIB}\n"},
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": f"{512 * MIB}\n",
            "sys/fs/cgroup/a/b/memory.max": f"{256 * MIB}\n",
        },
        {"proc/self/cgroup": "5:memory:/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}\n"},
        {"sys/fs/cgroup/memory.max": f"{256 * MIB}\n"},
    ],
    ids=["v2", "v2, parent", "v2, smallest", "v1, path of the host", "no list"],
)
def test_the_default_is_a_quarter_of_the_cgroups_limit(tmp_path: Path, files: dict[str, str]) -> None:
    chosen = choose_decode_bytes(0, lay_out(tmp_path, files))
    assert chosen.limit_bytes == 64 * MIB
    assert chosen.source == "a quarter of the cgroup's limit, 256 MiB"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "5:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"},
    ],
    ids=["no cgroup", "v2", "v1"],
)
def test_without_a_limit_the_memory_of_the_machine_is_used(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_memory_limit(lay_out(tmp_path, files)).source == "the machine's memory"


def test_the_default_is_at_most_2_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.memory.os.sysconf", lambda name: 2**20)
    chosen = choose_decode_bytes(0, tmp_path)
    assert chosen.limit_bytes == MAX_DEFAULT_BYTES
    assert "at most 2 GiB of the machine's memory" in chosen.source


def test_an_explicit_limit_is_used(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{256 * MIB}\n"}
    assert choose_decode_bytes(7 * MIB, lay_out(tmp_path, files)) == (7 * MIB, "--max-decode-bytes")


@pytest.mark.parametrize(("memory_mib", "expected_mib"), [(128, 4), (256, 4), (512, 8), (2048, 32), (65536, 32)])
def test_the_limit_on_requests_fits_into_the_memory(tmp_path: Path, memory_mib: int, expected_mib: int) -> None:
    root = lay_out(tmp_path, {"sys/fs/cgroup/memory.max": f"{memory_mib * MIB}\n"})
    assert choose_request_bytes(32 * MIB, 1, root).limit_bytes == expected_mib * MIB


def test_workers_share_the_memory_for_requests(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"sys/fs/cgroup/memory.max": f"{1024 * MIB}\n"})
    assert [choose_request_bytes(32 * MIB, workers, root).limit_bytes // MIB for workers in (1, 2, 8)] == [16, 8, 4]
