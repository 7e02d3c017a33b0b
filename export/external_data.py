"""The other files of an ONNX file: its weights may lie in any of its folder's, under any names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isthmus.lineage.files import sha256_file


def digests(file: Path) -> dict[str, str | None]:
    """{location as the ONNX file writes it: SHA-256 of that file, None where it cannot be one of its weights}.

    A file outside the ONNX file's folder is not opened. Of what is no ONNX file nothing is said: reading it refuses
    it, with a reason.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.ModelProto.FromString(file.read_bytes())
    except DecodeError:
        return {}
    nodes = [node for function in proto.functions for node in function.node]
    tensors = [*_of_graph(proto.graph), *_of_nodes(nodes)]
    folder = file.parent.resolve()
    return {location: _digest(folder, location) for location in sorted(set(_locations(tensors)))}


def _digest(folder: Path, location: str) -> str | None:
    path = (folder / location).resolve()
    return sha256_file(path) if path.is_relative_to(folder) and path.is_file() else None


def _locations(tensors: list[Any]) -> Iterator[str]:
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)
