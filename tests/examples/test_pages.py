"""The blocks of a page are run, and each difference between a shown output and the real one is found."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.examples.pages import renew_page, run_page
from tests.examples.shown import align, list_differences

PAGE = """# Page

```python title="count.py"
print("accuracy 0.9512 of 80 images")
print("done")
```

```sh
python count.py
```

```text
accuracy 0.9500 of 80 images
...
```

```sh
name=page
false || echo "exit code $?"
```

```sh
echo "$name" >&2
```

```text
page
```
"""


def test_a_page_runs_in_one_shell_and_numbers_may_differ_a_little(tmp_path: Path) -> None:
    assert run_page(PAGE, tmp_path) == []


@pytest.mark.parametrize(
    ("shown", "changed", "found"),
    [
        ("0.9500 of", "0.6400 of", "line 13"),
        ("of 80 images", "of 80 photos", "line 13"),
        ("...", "never printed", "line 13"),
        ("page\n```\n", "pages\n```\n", "line 27"),
        ("page\n```\n", "page\nmore\n```\n", "line 27"),
    ],
)
def test_another_output_is_found(tmp_path: Path, shown: str, changed: str, found: str) -> None:
    assert shown in PAGE
    first, *others = run_page(changed.join(PAGE.rsplit(shown, 1)), tmp_path)
    assert first.startswith(found)
    assert not others


@pytest.mark.parametrize("command", ["false", "false; true", "python missing.py"])
def test_a_command_that_fails_ends_the_page(tmp_path: Path, command: str) -> None:
    with pytest.raises(AssertionError, match="line 18: a command failed"):
        run_page(PAGE.replace("name=page", command), tmp_path)


def test_a_background_process_ends_with_the_page(tmp_path: Path) -> None:
    page = "```sh\nsleep 600 &\necho $! > pid\n```\n"
    assert run_page(page, tmp_path) == []
    number = (tmp_path / "pid").read_text().strip()
    while _is_running(number):  # a signal was sent, and does not wait; --timeout ends the test of a process that stays
        time.sleep(0.01)


def _is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_page_is_renewed_and_keeps_what_it_leaves_out(tmp_path: Path) -> None:
    renewed = renew_page(PAGE.replace("0.9500", "0.1000").replace("page\n```\n", "```\n"), tmp_path)
    assert renewed == PAGE.replace("0.9500", "0.9512")


@pytest.mark.parametrize(
    ("shown", "real", "fits"),
    [
        ("12 s, 1,163,017 bytes", "95 s, 7 bytes", True),
        ("within 6.2e-06", "within 1.1e-05", True),
        ("digest sha256:2c5e54c8a0a25cc8", "digest sha256:20d8115961baeb4c", True),
        ("a   table", "a table", True),
        ("photos/sky/01.jpg: 0", "photos/sky/12.jpg: 0", True),
        ("latency … times", "latency 1.02 times", True),
        ("latency … times", "latency 1.02", False),
        ("exit code 1", "exit code 2", False),
        ("exit code 1", "exit code 0", False),
        ("version 2", "version 3", False),
        ("0.5", "nan", False),
        ("accuracy 0.8250 of 80", "accuracy 0.6375 of 80", True),
        ("accuracy 0.8250 of 80", "accuracy 0.5000 of 80", False),
        ("accuracy 0.8250 of 80", "accuracy 0.8250 of 90", False),
        ("14 of 80 change (17.50%)", "29 of 80 change (36.25%)", True),
        ("1 images gained, 22 lost, McNemar's p 5.72e-06", "9 images gained, 2 lost, McNemar's p 0.034", True),
        ("probabilities differ by up to 0.97 (limit 0.001", "probabilities differ by up to 1 (limit 0.001", True),
        ("--max-changed 2%", "--max-changed 3%", False),
        ("a\n...\nb\n...\nc", "a\nb\nc", True),
        ("a\n...\nb\n...\nc", "a\nx\nb\nc", True),
        ("a\n...\nb\n...\nc", "a\nx\nc", False),
        ("a\n...\nc", "a\nb\nc\nd", False),
        ("...\na", "a", True),
        ("a\n...\na", "a", False),
    ],
)
def test_lines_fit_up_to_what_differs_between_machines(shown: str, real: str, fits: bool) -> None:
    assert (list_differences(shown, real) == []) == fits


def test_another_output_replaces_the_shown_one() -> None:
    assert align(["a", "...", "b 1"], ["a", "x", "b 500"]) == ["a", "...", "b 500"]
    assert align(["a", "...", "b", "...", "c"], ["a", "x", "c"]) == ["a", "x", "c"]
    assert align(["took … s"], ["took 5 s"]) == ["took … s"]
    assert align(["sha256:aaaa…"], ["sha256:bbbb…"]) == ["sha256:bbbb…"]  # the command itself cuts the line


def test_a_file_has_one_digest_on_a_page(tmp_path: Path) -> None:
    def show(digest: str) -> str:
        block = "```sh\necho sha256:0123456789abcdef\n```\n\n```text\nsha256:{}\n```\n"
        return block.format("a" * 16) + block.format(digest)

    assert run_page(show("a" * 16), tmp_path) == []
    (found,) = run_page(show("b" * 16), tmp_path)
    assert found.endswith(f"one file has the digests {'a' * 12} and {'b' * 12} on the page")
