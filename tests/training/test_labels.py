"""Labels from tables: CSV in its usual forms, metadata files, and everything that does not fit, by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evalmode.errors import DataError
from tests.training.test_datasets import SPLITS, sizes, write_classes, write_images
from training.datasets import Dataset, ReadOptions, load_dataset, survey_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, 00 to 11, of which every other one shows a dog."""
    for path in write_images(tmp_path / "data", 12):
        path.rename(path.with_name(path.name[1:]))
    return tmp_path / "data"


def label(name: str) -> str:
    return ("cat", "dog")[int(Path(name).stem) % 2]


def list_rows(folder: Path, row: str = "{name},{label}") -> list[str]:
    names = sorted(path.name for path in folder.glob("*.png"))
    return [row.format(name=name, stem=Path(name).stem, label=label(name)) for name in names]


def write_table(folder: Path, rows: Sequence[str], header: str = "file,label", name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([*([header] if header else []), *rows]) + "\n", "utf-8")
    return path


def load(folder: Path, table: Path | None = None, skip: bool = False) -> Dataset:
    return load_dataset(str(folder), ReadOptions(labels=table, skip_unreadable=skip))


def labels_of(dataset: Dataset) -> dict[str, str]:
    splits = [getattr(dataset, name) for name in SPLITS]
    return {
        path.name: dataset.labels[target]
        for split in splits
        for path, target in zip(split.paths, split.targets, strict=True)
    }


@pytest.fixture
def wanted(folder: Path) -> dict[str, str]:
    return {path.name: label(path.name) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file,label", "{name},{label}"),
        ("Label,File Name", "{label},{name}"),
        ("image_id,label", "{stem},{label}"),
        ("id,breed", "{stem},{label}"),
        ("Image,Id", "{name},{label}"),
        (",filename,species,width", '0,"{name}",{label},5'),
        ("lesion_id,image_id,dx,dataset", "x,{stem},{label},modern"),
        ("image;class", "{name};{label}"),
        ("image\tclass", "{name}\t{label}"),
        ("file_path,category", "./{name},  {label} "),
        ("path,level", "data/{name},{label}"),
        ("path,level", r"data\{name},{label}"),
        ("", "{name},{label}"),
        ("", "{name};{label};5;x"),
    ],
)
def test_usual_tables_are_read(tmp_path: Path, folder: Path, wanted: dict[str, str], header: str, row: str) -> None:
    dataset = load(folder, write_table(tmp_path, list_rows(folder, row), header))
    assert dataset.labels == ("cat", "dog")
    assert labels_of(dataset) == wanted
    assert dataset.warnings == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings_of_spreadsheets_are_read(folder: Path, wanted: dict[str, str], encoding: str, end: str) -> None:
    path = folder / "labels.csv"
    content = end.join(["file;label", *list_rows(folder, "{name};{label}"), ""]).replace("dog", "Dachs ä")
    path.write_bytes(content.encode(encoding))
    dataset = load(folder, path)
    assert dataset.labels == ("Dachs ä", "cat")
    assert labels_of(dataset) == {name: label.replace("dog", "Dachs ä") for name, label in wanted.items()}
    assert dataset.warnings == ()


def test_a_table_gives_the_same_data_set_as_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", 9)
    paths = sorted((tmp_path / "classes").glob("*/*"))
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    table = write_table(tmp_path, rows[::-1])
    by_folder, by_table = load(tmp_path / "classes"), load(tmp_path / "classes", table)
    assert by_table.digest() == by_folder.digest()
    assert by_table.train.paths == by_folder.train.paths
    assert survey_data(str(tmp_path / "classes"), ReadOptions(labels=table)) == survey_data(str(tmp_path / "classes"))


def test_images_in_other_folders_are_found_by_their_name(tmp_path: Path, folder: Path, wanted: dict[str, str]) -> None:
    folder.rename(tmp_path / "moved")
    (tmp_path / "data").mkdir()
    (tmp_path / "moved").rename(tmp_path / "data" / "train_images")
    table = write_table(folder, list_rows(folder / "train_images", "{stem},{label}"), "image_id,label")
    assert labels_of(load(folder, table)) == wanted


def test_whole_numbers_are_labels_in_their_order(folder: Path) -> None:
    rows = [f"{index:02},{(2, 10)[index % 2]}" for index in range(12)]
    assert load(folder, write_table(folder, rows)).labels == ("2", "10")


def test_labels_of_equal_value_are_in_the_order_of_their_names(folder: Path) -> None:
    rows = [f"{index:02},{('1', '01', '001')[index % 3]}" for index in range(12)]
    assert load(folder, write_table(folder, rows)).labels == ("001", "01", "1")


@pytest.mark.parametrize("column", ["split", "Data Set", "subset"])
def test_a_column_of_splits(folder: Path, column: str) -> None:
    parts = ["train", "Training", "TRAIN", "train", "val", "valid", "test", "Test"] + ["train"] * 4
    rows = [f"{row},{part}" for row, part in zip(list_rows(folder), parts, strict=True)]
    dataset = load(folder, write_table(folder, rows, f"file,label,{column}"))
    assert sizes(dataset) == {"train": 8, "val": 2, "test": 2}
    assert [path.name for path in dataset.val.paths] == ["04.png", "05.png"]
    assert [path.name for path in dataset.test.paths] == ["06.png", "07.png"]
    assert dataset.warnings == ()


def test_a_column_without_a_header_may_hold_splits(folder: Path) -> None:
    parts = ["test"] * 4 + ["train"] * 8
    rows = [f"{row},{part}" for row, part in zip(list_rows(folder), parts, strict=True)]
    assert sizes(load(folder, write_table(folder, rows, ""))) == {"train": 6, "val": 2, "test": 4}


def test_folders_of_splits_are_splits_if_the_table_has_none(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("valid", 4)):
        write_images(tmp_path / split, count)
    rows = [f"{path.relative_to(tmp_path)},{label(path.name)}" for path in sorted(tmp_path.glob("*/*"))]
    assert sizes(load(tmp_path, write_table(tmp_path, rows))) == {"train": 4, "val": 4, "test": 2}


# Metadata


def write_metadata(folder: Path, kind: str, column: str = "label") -> Path:
    rows = [{"file_name": path.name, column: label(path.name)} for path in sorted(folder.glob("*.png"))]
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        write_table(folder, [",".join(row.values()) for row in rows], f"file_name,{column}", path.name)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("column", ["label", "text"])
def test_metadata_in_a_folder_are_found(folder: Path, wanted: dict[str, str], kind: str, column: str) -> None:
    path = write_metadata(folder, kind, column)
    dataset = load(folder)
    assert labels_of(dataset) == wanted
    assert dataset.warnings == (f"the labels are those of {path}",)


def test_metadata_in_the_folders_of_splits_are_found(tmp_path: Path) -> None:
    for split, count, kind in (("train", 8, "csv"), ("test", 4, "jsonl")):
        write_images(tmp_path / split, count)
        write_metadata(tmp_path / split, kind)
    dataset = load(tmp_path)
    assert sizes(dataset) == {"train": 6, "val": 2, "test": 4}
    assert labels_of(dataset)["003.png"] == "dog"
    assert dataset.test.paths == tuple(
        tmp_path / "test" / name for name in ("000.png", "002.png", "001.png", "003.png")
    )


def test_names_that_the_first_object_lacks_are_read(folder: Path) -> None:
    def write(first: dict[str, str]) -> None:
        parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
        rows = [
            {"file_name": f"{index:02}.png", "label": ("cat", "dog")[index % 2], "split": part}
            for index, part in enumerate(parts)
        ]
        write_table(folder, [json.dumps(first), *map(json.dumps, rows[1:])], "", "metadata.jsonl")

    write({"label": "cat", "file_name": "00.png", "split": "train"})
    assert sizes(load(folder)) == {"train": 8, "val": 2, "test": 2}
    write({"file_name": "00.png", "label": "cat"})
    with pytest.raises(DataError, match=r"line 1: the split '' is unknown: write train, val or test"):
        load(folder)


def test_numbers_in_metadata_are_labels(folder: Path) -> None:
    rows = [json.dumps({"file_name": f"{index:02}.png", "label": index % 2}) for index in range(12)]
    write_table(folder, rows, "", "metadata.jsonl")
    assert load(folder).labels == ("0", "1")


@pytest.mark.parametrize("header", ["file_name,text", "file_name,a,b", "x,y,z"])
def test_metadata_without_labels_leave_the_labels_to_folders(tmp_path: Path, header: str) -> None:
    write_classes(tmp_path, 4)
    rows = [f"{path.relative_to(tmp_path)},words,more" for path in sorted(tmp_path.glob("*/*"))]
    write_table(tmp_path, rows, header, "metadata.csv")
    dataset = load(tmp_path)
    assert dataset.labels == ("cat", "dog")
    assert dataset.warnings[0].startswith(f"the labels are the names of folders: {tmp_path / 'metadata.csv'} has no ")


def test_metadata_of_other_things_leave_the_labels_to_folders(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    write_table(tmp_path, ["0,cat", "1,dog"], "id,category", "metadata.csv")
    dataset = load(tmp_path)
    assert dataset.labels == ("cat", "dog")
    assert "no row of" in dataset.warnings[0]


def test_a_folder_without_labels_is_refused_with_both_reasons(folder: Path) -> None:
    write_table(folder, list_rows(folder, "{name},1,2"), "file_name,a,b", "metadata.csv")
    with pytest.raises(
        DataError, match=r"0 folders of labels.*; .*metadata\.csv has no column named label: its first line"
    ):
        load(folder)


def test_two_metadata_files_of_a_folder_are_refused(folder: Path) -> None:
    write_metadata(folder, "csv")
    write_metadata(folder, "jsonl")
    with pytest.raises(DataError, match=r"holds metadata\.csv and metadata\.jsonl: remove one"):
        load(folder)


# What is left out is counted and named


def test_images_that_no_row_names_are_counted_and_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    dataset = load(folder, write_table(folder, list_rows(folder)[:-2]))
    others, unnamed = dataset.warnings
    assert others.endswith(f": {folder / 'notes.txt'}")
    table = folder / "labels.csv"
    assert unnamed == f"left out 2 images that have no label in {table}: {folder / '10.png'}, {folder / '11.png'}"


def test_rows_without_an_image_are_refused_or_left_out(folder: Path) -> None:
    rows = [*list_rows(folder), *(f"{index}.png,cat" for index in range(100, 107))]
    table = write_table(folder, rows)
    with pytest.raises(DataError) as refused:
        load(folder, table)
    named = "line 14 (100.png), line 15 (101.png), line 16 (102.png), line 17 (103.png), line 18 (104.png) and 2 more"
    assert str(refused.value) == (
        f"7 of 19 rows of {table} name no image in {folder}: {named}: repair the table, or leave the rows out with "
        "--skip-unreadable"
    )
    dataset = load(folder, table, skip=True)
    assert dataset.warnings == (f"left out 7 rows of {table} that name no image: {named}",)


def test_rows_without_a_label_are_left_out(folder: Path) -> None:
    rows = list_rows(folder)
    rows[3] = "03.png,"
    table = write_table(folder, rows)
    dataset = load(folder, table)
    assert len(labels_of(dataset)) == 11
    assert dataset.warnings == (
        f"left out 1 image that has no label in {table}: {folder / '03.png'}",
        f"left out 1 row of {table} that have no label: line 5 (03.png)",
    )


def test_repeated_rows_are_counted(folder: Path) -> None:
    table = write_table(folder, [*list_rows(folder), "03.png,dog"])
    assert load(folder, table).warnings == (f"left out 1 row of {table} that repeat another row: line 14 (03.png)",)


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["03.png,cat"], "file,label", r"03\.png has two labels, in .*labels\.csv, line 5 and in line 14: an image"),
        (["3,emu"], "file,label", "1 of 13 rows of .* name no image in .*: line 14 .3."),
        (["x/03.png,emu"], "file,label", r"line 14 .x/03\.png."),
        ([], "a,b", r"has no column named file: its first line is a, b\. Name the columns file and label"),
        ([], "file,a,b", "has no column named label: its first line is file, a, b"),
        ([], "file", "has no column named label"),
        (["x"], "file,label", "line 14 has 1 columns, at least 2 are needed"),
        (['"x'], "file,label", "line 14 is not CSV: unexpected end of data"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder: Path, rows: list[str], header: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        load(folder, write_table(folder, [*list_rows(folder), *rows], header))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"file,label\n", "has no row with a file and a label"),
        (b"file,label\n00.png,\xff\n", "line 2 is not utf-8: expected a table of files and labels in UTF-8"),
    ],
)
def test_files_that_are_no_tables_are_refused(folder: Path, content: bytes, words: str) -> None:
    (folder / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load(folder, folder / "labels.csv")


@pytest.mark.parametrize("line", ["[1]", "{", '{"file_name": "00.png", "label": ["cat"]}', "[" * 100_000])
def test_lines_that_are_not_objects_of_texts_are_refused(folder: Path, line: str) -> None:
    write_table(folder, ['{"file_name": "01.png", "label": "cat"}', line], "", "metadata.jsonl")
    with pytest.raises(DataError, match="line 2"):
        load(folder)


def test_a_missing_table_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        load(folder, folder / "none.csv")


def test_splits_that_contradict_each_other_are_refused(folder: Path) -> None:
    rows = [f"{row},train" for row in list_rows(folder)]
    with pytest.raises(DataError, match=r"03\.png has two splits"):
        load(folder, write_table(folder, [*rows, "03.png,dog,test"], "file,label,split"))
    with pytest.raises(DataError, match="line 14: the split 'later' is unknown: write train, val or test"):
        load(folder, write_table(folder, [*rows, "03.png,dog,later"], "file,label,split"))
    with pytest.raises(DataError, match="no training image has the label 'emu' of this test image"):
        load(folder, write_table(folder, [*rows[:-1], "11.png,emu,test"], "file,label,split"))
    with pytest.raises(DataError, match="has no training images: write train in the column split"):
        load(folder, write_table(folder, [row.replace("train", "test") for row in rows], "file,label,split"))


def test_a_name_that_several_images_have_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, 4)
    with pytest.raises(DataError, match=r"line 2: 000\.png may be .*cat/000\.png or .*dog/000\.png: write its path"):
        load(tmp_path, write_table(tmp_path, ["000.png,cat"]))


def test_a_complete_name_is_found_before_one_without_suffix(folder: Path) -> None:
    table = write_table(folder, list_rows(folder))
    for path in write_images(folder, 1):
        path.rename(folder / "00.png.png")
    found = labels_of(load(folder, table))
    assert found["00.png"] == "cat"
    assert "00.png.png" not in found


def test_a_table_of_published_data_is_refused(tmp_path: Path) -> None:
    for source in ("digits", str(tmp_path / "x.npz")):
        with pytest.raises(DataError, match=r"--labels .* is for folders of images"):
            load_dataset(source, ReadOptions(labels=tmp_path / "labels.csv"))
        with pytest.raises(DataError, match=r"--labels .* is for folders of images"):
            survey_data(source, ReadOptions(labels=tmp_path / "labels.csv"))
