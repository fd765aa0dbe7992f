"""The layout of a repository is recognised by one rule. Ambiguous ones are refused with what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from evalmode.artifact.layouts import NamedModels, OneFile, OneModel
from evalmode.artifact.publishing import check_publishable, publish, withdraw
from evalmode.artifact.recognition import recognise
from evalmode.artifact.repository import resolve_artifact
from evalmode.errors import ArtifactInvalid, NameInvalid, UsageError


def put(root: Path, *paths: str) -> Path:
    """Create files in a folder. A path ``a -> b`` is a link to b."""
    root.mkdir(parents=True, exist_ok=True)
    for path in paths:
        name, _, target = path.partition(" -> ")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (root / name).symlink_to(target)
        else:
            (root / name).write_bytes(b"artifact")
    return root


@pytest.mark.parametrize(
    ("paths", "named", "expected"),
    [
        (["cats/1/model.onnx", "dogs/2/model.onnx"], "", [("cats", 1), ("dogs", 2)]),
        (["1/model.onnx", "20/model.onnx"], "", [("pets", 1), ("pets", 20)]),
        (["model.onnx"], "", [("pets", 1)]),
        (["resnet.v2.onnx"], "", [("resnet.v2", 1)]),
        (["model.onnx"], "model.onnx", [("pets", 1)]),
        (["resnet.onnx", "other.onnx"], "resnet.onnx", [("resnet", 1)]),
        (["cats/3/model.onnx"], "cats/3", [("cats", 3)]),
        (["cats/3/model.onnx"], "cats/3/model.onnx", [("cats", 3)]),
        (["cats/3/model.onnx"], "cats", [("cats", 3)]),
        (["1/1/model.onnx"], "", [("1", 1)]),
        (["..v1/model.onnx", "..data -> ..v1", "model.onnx -> ..data/model.onnx"], "", [("pets", 1)]),
        (["..v1/1/model.onnx", "..data -> ..v1", "1 -> ..data/1"], "", [("pets", 1)]),
        ([".worktrees/a1b2/3/model.onnx", "current -> .worktrees/a1b2"], "current", [("current", 3)]),
        ([".worktrees/a1b2/3/model.onnx", "current -> .worktrees/a1b2"], "", [("current", 3)]),
        (["blobs/1a", "cats/1/model.onnx -> ../../blobs/1a"], "", [("cats", 1)]),
        # Strays beside a layout do not change it.
        (["cats/1/model.onnx", "model.onnx", "1/model.onnx"], "", [("cats", 1)]),
        (["1/model.onnx", "old.onnx", ".hidden.onnx"], "", [("pets", 1)]),
        (["model.onnx", "model_quantized.onnx", ".model.onnx"], "", [("pets", 1)]),
    ],
)
def test_recognises(tmp_path: Path, paths: list[str], named: str, expected: list[tuple[str, int]]) -> None:
    layout = recognise(put(tmp_path / "pets", *paths) / named)
    found = [(name, version) for name in layout.list_names() for version in layout.list_versions(name)]
    assert found == expected
    for name, version in found:
        assert layout.find_artifact(name, version).read_bytes() == b"artifact"
        assert name in layout.describe()
        assert layout.list_versions("other") == []
        with pytest.raises(ArtifactInvalid, match=f"versions of {name}: .*{version}"):
            layout.find_artifact(name, 99)
        with pytest.raises(ArtifactInvalid, match="versions of other: none"):
            layout.find_artifact("other", version)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (
            ["model.onnx", "1/model.onnx"],
            "model.onnx beside version 1 of a model: remove one of them, or name the file",
        ),
        (["a.onnx", "b.onnx"], "2 ONNX files, such as a.onnx, b.onnx, and none is model.onnx: name one of them"),
    ],
)
def test_refuses_what_is_ambiguous(tmp_path: Path, paths: list[str], expected: str) -> None:
    with pytest.raises(ArtifactInvalid, match=expected):
        recognise(put(tmp_path, *paths))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["weights.pt", "a.txt", "b.txt", "c.txt"], r"\(found a.txt, b.txt, c.txt, and 1 more\)"),
        (["model.onnx -> gone"], r"\(found model.onnx, a link to gone, which does not exist\)"),
        (["onnx/model.onnx"], "onnx/model.onnx is not a version"),
        ([".hidden.onnx"], r"\(it is empty\)"),
    ],
)
def test_says_what_was_found_and_what_is_accepted(tmp_path: Path, paths: list[str], expected: str) -> None:
    layout = recognise(put(tmp_path, *paths))
    assert layout.list_names() == []
    accepted = "holds no <name>/<version>/model.onnx, no <version>/model.onnx and no single *.onnx file"
    assert accepted in layout.explain_missing()
    assert re.search(expected, layout.explain_missing())


class TestName:
    @pytest.mark.parametrize("path", ["1/model.onnx", "model.onnx", "resnet.onnx"])
    def test_of_the_only_model_can_be_chosen(self, tmp_path: Path, path: str) -> None:
        assert recognise(put(tmp_path / "my models", path), "cats").list_names() == ["cats"]

    @pytest.mark.parametrize("path", ["1/model.onnx", "model.onnx", "a b.onnx"])
    def test_that_is_not_allowed_is_refused_with_the_option(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(NameInvalid, match="set --model-name, use up to 128 letters"):
            recognise(put(tmp_path / "my models", path))
        with pytest.raises(NameInvalid, match=r"'../x' is not allowed"):
            recognise(tmp_path / "my models", "../x")

    def test_is_refused_for_models_that_have_names(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"--model-name cats .* holds models by name: a, b"):
            recognise(put(tmp_path, "a/1/model.onnx", "b/1/model.onnx"), "cats")

    def test_is_that_of_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(put(tmp_path / "pets", "1/model.onnx"))
        assert recognise(Path()).list_names() == ["pets"]
        assert recognise(Path("1/..")).list_names() == ["pets"]


class TestLinks:
    """As KServe lays out a volume, and Hugging Face its cache: the files are links to another folder."""

    @pytest.mark.parametrize(
        ("path", "target", "named"),
        [
            ("model.onnx", "blobs/1a", OneFile),
            ("1/model.onnx", "blobs/1a", OneModel),
            ("1", "volume/pets/1", OneModel),
            ("pets/1/model.onnx", "blobs/1a", NamedModels),
            ("pets", "volume/pets", NamedModels),
        ],
    )
    def test_that_lead_out_need_the_option_that_the_refusal_names(
        self, tmp_path: Path, path: str, target: str, named: type
    ) -> None:
        put(tmp_path, "blobs/1a", "volume/pets/1/model.onnx", f"models/{path} -> {tmp_path / target}")
        layout = recognise(tmp_path / "models")
        assert type(layout) is named
        (name,) = layout.list_names()
        with pytest.raises(ArtifactInvalid, match=f"is a link to {tmp_path / target}; .*--follow-links") as caught:
            layout.find_artifact(name, 1)
        folder = str(caught.value).rpartition(" ")[2]
        for allowed in (folder, str(tmp_path), str(tmp_path.parent), "/"):
            layout = recognise(tmp_path / "models", "", [allowed])
            assert layout.find_artifact(name, 1).read_bytes() == b"artifact"
        put(tmp_path, "elsewhere/x")
        with pytest.raises(ArtifactInvalid, match="is outside the repository"):
            recognise(tmp_path / "models", "", [str(tmp_path / "elsewhere")]).find_artifact(name, 1)

    def test_inside_an_allowed_folder_must_not_lead_out_of_it(self, tmp_path: Path) -> None:
        put(tmp_path, "secret", f"blobs/1a -> {tmp_path}/secret", "models/model.onnx -> ../blobs/1a")
        with pytest.raises(ArtifactInvalid, match=f"blobs/1a is a link to {tmp_path}/secret"):
            recognise(tmp_path / "models", "", [str(tmp_path / "blobs")]).find_artifact("models", 1)
        allowed = [str(tmp_path / "blobs"), str(tmp_path)]
        recognise(tmp_path / "models", "", allowed).find_artifact("models", 1)

    @pytest.mark.parametrize(
        "target", ["../volume/pets/1", "{root}/volume/pets/1", "../current/1", "../volume/../current/1"]
    )
    def test_into_a_folder_below_the_allowed_one_are_followed(self, tmp_path: Path, target: str) -> None:
        put(tmp_path / "x", "volume/pets/1/model.onnx", "current -> volume/pets", "secret/model.onnx", "volume/file")
        layout = recognise(
            put(tmp_path / "x", f"models/1 -> {target.format(root=tmp_path / 'x')}") / "models", "", ["/"]
        )
        assert layout.find_artifact("models", 1).is_file()
        allowed = [str(tmp_path / "x" / "volume")]
        recognise(tmp_path / "x" / "models", "", allowed).find_artifact("models", 1)
        put(
            tmp_path / "x",
            "models/2 -> ../volume/../secret",
            "models/3/model.onnx -> ../../volume/pets/../../secret/model.onnx",
        )
        for version in (2, 3):
            with pytest.raises(ArtifactInvalid, match="is outside the repository"):
                recognise(tmp_path / "x" / "models", "", allowed).find_artifact("models", version)

    def test_to_a_file_that_the_user_names_are_followed(self, tmp_path: Path) -> None:
        put(tmp_path, "blobs/1a", "models/pets.onnx -> ../blobs/1a")
        layout = recognise(tmp_path / "models" / "pets.onnx")
        assert layout.find_artifact("pets", 1).read_bytes() == b"artifact"

    def test_need_an_existing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--follow-links 1: no such folder; '--follow-links /' allows every"):
            recognise(put(tmp_path, "model.onnx"), "", ["1"])


class TestStrays:
    @pytest.mark.parametrize(
        ("paths", "expected"),
        [
            (["1/model.onnx", "old.onnx", "v2/model.onnx", ".withdrawn-3/model.onnx"], ["old.onnx", "v2"]),
            (["model.onnx", "other.onnx", ".hidden.onnx"], ["other.onnx"]),
        ],
    )
    def test_are_reported(self, tmp_path: Path, paths: list[str], expected: list[str]) -> None:
        strays = recognise(put(tmp_path / "pets", *paths)).find_strays()
        assert [os.path.relpath(path, tmp_path / "pets") for path in strays] == expected

    def test_beside_a_file_that_is_served_include_versions(self, tmp_path: Path) -> None:
        layout = recognise(put(tmp_path, "resnet.onnx"))
        put(tmp_path, "2/model.onnx")
        assert list(layout.find_strays()) == [str(tmp_path / "2" / "model.onnx")]

    def test_beside_a_file_that_the_user_names_are_none(self, tmp_path: Path) -> None:
        assert recognise(put(tmp_path, "a.onnx", "b.onnx") / "a.onnx").find_strays() == {}


@pytest.mark.parametrize(("path", "expected"), [("1/model.onnx", "holds no <version>"), ("model.onnx", "not exist")])
def test_explains_what_is_missing_later(tmp_path: Path, path: str, expected: str) -> None:
    layout = recognise(put(tmp_path / "pets", path))
    (tmp_path / "pets" / path).unlink()
    assert layout.list_names() == []
    assert layout.list_versions("pets") == []
    assert expected in layout.explain_missing("pets")
    assert "holds the model pets alone" in layout.explain_missing("cats")


def test_versions_are_published_and_withdrawn_by_the_folder_above(tmp_path: Path) -> None:
    layout = recognise(publish(tmp_path, "pets", b"1").parent.parent)
    for refused in (
        lambda: publish(tmp_path / "pets", "pets", b"2"),
        lambda: check_publishable(tmp_path / "pets", "pets"),
        lambda: withdraw(tmp_path / "pets", "pets"),
    ):
        with pytest.raises(UsageError, match=f"use --repository {tmp_path} and the model's name pets"):
            refused()
    publish(tmp_path, "pets", b"2")
    assert layout.list_versions("pets") == [1, 2]
    withdraw(tmp_path, "pets")
    assert layout.list_versions("pets") == [1]
    assert layout.find_strays() == {}


def test_a_path_names_the_only_file_of_a_folder(tmp_path: Path) -> None:
    folder = put(tmp_path, "resnet.onnx")
    assert resolve_artifact(folder).path == folder / "resnet.onnx"
    put(tmp_path, "other.onnx")
    with pytest.raises(UsageError, match=r"no version of a model: 2 \.onnx files, name one of them"):
        resolve_artifact(folder)
