"""Files are written whole or not at all, and errors name the file."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from evalmode.files import check_replaceable, check_writable, find_existing, write_atomically


def test_a_file_is_replaced_and_no_other_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_atomically(path, "old")
    write_atomically(path, "new ü")
    assert path.read_bytes() == "new ü".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    """The process may not write files over 100 bytes, which simulates a full disk."""
    path = tmp_path / "page.html"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*page\.html'") as caught:
            write_atomically(path, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "page.html", "x")
    assert list(tmp_path.iterdir()) == []


def test_links_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_atomically(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == "through"
    assert (tmp_path / "pipe").is_fifo()


WRITING = (
    "import sys; from pathlib import Path; from evalmode.files import check_replaceable, write_atomically\n"
    "path = Path(sys.argv[1]); check_replaceable(path)\n"
    "print('before'); print('before', file=sys.stderr); write_atomically(path, 'page\\n')\n"
    "print('after'); print('after', file=sys.stderr)"
)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1"])
def test_standard_output_and_error_are_written_in_order_to_pipes_and_files(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITING, name]
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        subprocess.run(command, stdout=out, stderr=err, check=True)
    piped = subprocess.run(command, capture_output=True, check=True)
    for found in ((piped.stdout, piped.stderr), ((tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes())):
        pages = (b"", b"page\n") if name == "/dev/stderr" else (b"page\n", b"")
        assert found == tuple(b"before\n" + page + b"after\n" for page in pages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out"]


@pytest.mark.parametrize(("reader", "read"), [("cat", "page\n"), ("true", "")])
def test_a_pipe_of_the_shell_is_written_to_even_if_its_reader_exits(reader: str, read: str) -> None:
    """Process substitution, such as ``--page >(cat)``."""
    writing = WRITING.replace("path = ", "import time; time.sleep(0.2); path = ")
    command = f'exec 3>&1; "$0" -c "$1" >({reader} >&3) >/dev/null'
    done = subprocess.run(["bash", "-c", command, sys.executable, writing], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, read, "before\nafter\n")


def test_the_folder_of_a_file_is_checked_in_advance(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "page.html")
    os.mkfifo(tmp_path / "pipe")
    check_replaceable(tmp_path / "pipe")  # without waiting for a reader
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "page.html")
    for path in (tmp_path / "missing" / "page.html", tmp_path / "link"):
        with pytest.raises(FileNotFoundError, match="missing"):
            check_replaceable(path)


def test_a_name_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page.html", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "page.html").read_text("utf-8") == "caf\\udce9"


def test_a_folder_is_checked_in_advance(tmp_path: Path) -> None:
    check_writable(find_existing(tmp_path / "not" / "there"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(find_existing(tmp_path / "file" / "models"))
    with pytest.raises(FileNotFoundError, match="missing"):
        check_writable(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_missing_package_of_another_project_is_reported_without_an_extra() -> None:
    """An extra of evalmode would not install it."""
    code = (
        "import sys; from evalmode.cli import check\n"
        "def fail(*_, **__): import no_such_package\n"
        "check.check.callback = fail\n"
        "from evalmode.cli.main import main\n"
        f"main(['check', {sys.executable!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "evalmode: the Python package 'no_such_package' is not installed; it is not a dependency of evalmode: "
        "install it\n"
    )
