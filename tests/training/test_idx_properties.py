"""Properties of the IDX parser: any four files are a data set, or are refused by the name of one of them."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evalmode.errors import DataError
from tests.mutated import mutated, started
from training.datasets.idx import read_idx

MEMORY_BYTES = 1_000_000  # a damaged header may state any size
FILES = {
    f"{prefix}-{kind}": struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(np.prod(shape))
    for prefix, count in (("train", 6), ("t10k", 3))
    for kind, shape in (("images-idx3-ubyte", (count, 4, 5)), ("labels-idx1-ubyte", (count,)))
}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data(), st.booleans())
def test_any_bytes_in_place_of_an_idx_file_are_read_or_refused(name: str, data: st.DataObject, gzipped: bool) -> None:
    content = data.draw(mutated([FILES[name]]) | started([FILES[name][:4]], 40))
    packed = data.draw(mutated([gzip.compress(content, mtime=0)])) if gzipped else content
    with tempfile.TemporaryDirectory() as folder:
        for other, undamaged in FILES.items():
            (Path(folder) / other).write_bytes(undamaged)
        (Path(folder) / (name + ".gz" * gzipped)).write_bytes(packed)
        refusal = ""
        with patch("training.datasets.memory.available_memory_bytes", lambda: MEMORY_BYTES):
            try:
                published = read_idx(Path(folder))
            except DataError as error:
                refusal = str(error)
    if refusal:
        assert folder in refusal or f"{MEMORY_BYTES:,} are available" in refusal
        return
    assert sorted(published.splits) == ["test", "train"]
    for split in published.splits.values():
        assert split.images.dtype == np.uint8
        assert len(split.images) == len(split.targets)
        assert split.targets.max() < len(published.labels)


def test_undamaged_files_are_read(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    published = read_idx(tmp_path)
    assert published.labels == ("0",)
    assert {name: split.images.shape for name, split in published.splits.items()} == {
        "train": (6, 4, 5, 1),
        "test": (3, 4, 5, 1),
    }
