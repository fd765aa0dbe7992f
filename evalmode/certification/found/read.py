"""Read everything that is there about a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx

from evalmode.certification.found.facts import Fact
from evalmode.certification.found.graph import read_classes, read_maps, read_rescaling, read_shape
from evalmode.certification.found.hugging_face import read_hugging_face
from evalmode.certification.found.image_keys import read_image_keys
from evalmode.certification.found.label_files import read_label_files
from evalmode.certification.found.own import read_own
from evalmode.certification.found.place import Place
from evalmode.certification.found.timm import read_timm
from evalmode.certification.found.triton import read_triton
from evalmode.certification.found.ultralytics import read_ultralytics

FOLDER_READERS: tuple[Callable[[Place], Iterator[Fact]], ...] = (
    read_hugging_face,
    read_timm,
    read_triton,
    read_label_files,
)
GRAPH_READERS = (read_shape, read_classes, read_maps, read_rescaling)


def read_facts(place: Place, graph: onnx.ModelProto) -> tuple[Fact, ...]:
    """Read the facts about a network.

    Args:
        place: Where it lies.
        graph: The network.

    Returns:
        The facts of all sources. They may contradict each other.

    Raises:
        UsageError: A file of metadata is damaged, or states that the network is not a classifier.
    """
    keys = {entry.key: entry.value for entry in graph.metadata_props}
    facts = list(read_own(keys)) or [*read_ultralytics(keys), *read_image_keys(keys)]
    facts += [fact for read in FOLDER_READERS for fact in read(place)]
    facts += [fact for read in GRAPH_READERS for fact in read(graph)]
    return tuple(facts)
