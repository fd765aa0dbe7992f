"""The option --also names layouts, and their folders beside the model repository or anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evalmode.deployment.targets import Target, check_credits, check_kinds, read_targets
from evalmode.errors import UsageError
from tests.conftest import as_nobody


@pytest.mark.parametrize(
    ("repository", "folder"),
    [("models", "models-triton"), ("models/", "models-triton"), ("a/b", "a/b-triton"), ("/a/b", "/a/b-triton")],
)
def test_the_folder_is_beside_the_repository(repository: str, folder: str) -> None:
    assert read_targets(["triton"], Path(repository)) == (Target("triton", Path(folder)),)


@pytest.mark.parametrize(("repository", "name"), [(".", "inner-ovms"), ("..", "outer-ovms"), ("x/..", "inner-ovms")])
def test_a_repository_without_a_name_is_named_by_its_folder(
    repository: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    (target,) = read_targets(["ovms"], Path(repository))
    assert target.folder == (tmp_path / "outer" / name if name != "outer-ovms" else tmp_path / name)


def test_the_root_has_nothing_beside_it() -> None:
    with pytest.raises(UsageError, match="no folder can be beside /: write kserve=DIR"):
        read_targets(["kserve"], Path("/"))


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    also = [f"triton={tmp_path}/a=b", f"huggingface={tmp_path}"]
    assert read_targets(also, Path("models")) == (
        Target("triton", tmp_path / "a=b"),
        Target("huggingface", tmp_path),
    )


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["tritn"], "--also tritn: 'tritn' is unknown: choose one of triton, kserve, ovms, huggingface"),
        ([""], "'' is unknown"),
        (["=models"], "'' is unknown"),
        (["triton="], "--also triton= names no folder: write triton=DIR, or triton alone"),
        (["triton", "triton=x"], "--also names triton twice"),
    ],
)
def test_other_values_are_rejected(also: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_kinds(also)


def test_a_folder_that_is_not_writable_is_found_at_once(readable_folder: Path) -> None:
    (readable_folder / "closed").mkdir(0o555)
    with as_nobody(), pytest.raises(PermissionError) as caught:
        read_targets([f"ovms={readable_folder}/closed/x"], Path("models"))
    assert os.fspath(readable_folder / "closed") == caught.value.filename


@pytest.mark.parametrize(("text", "why"), [("", "line of text"), ("a\nb", "line of text"), ("x" * 201, "at most 200")])
def test_an_author_must_be_a_line_of_text(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"author .*{why}"):
        check_credits(text, None)
    with pytest.raises(UsageError, match=f"license .*{why}"):
        check_credits(None, text)
