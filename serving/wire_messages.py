"""TensorFlow Serving's messages without importing tensorflow: 0.1 s instead of 5 to 25 s in a client.

`from tensorflow_serving.apis import predict_pb2` imports tensorflow (its generated modules import
tensorflow.core.framework, and that runs tensorflow/__init__.py). The generated modules, though, each hold
their serialized file descriptor as one literal. `message_class` reads those literals from the installed
packages' files, without running them, into a descriptor pool of its own. The classes speak the same bytes;
they are not the same Python classes as those of `tensorflow_serving.apis`.
"""

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from isthmus.serving.errors import ServingError

__all__ = ["message_class", "serialized_file"]

_WELL_KNOWN = (any_pb2.DESCRIPTOR, wrappers_pb2.DESCRIPTOR)


@functools.cache
def message_class(module: str, message: str) -> Any:
    """A message class.

    Args:
        module: the generated module that defines it, such as "tensorflow_serving.apis.predict_pb2".
        message: its name there, such as "PredictRequest".

    Raises:
        ServingError: tensorflow-serving-api is not installed, or its generated code has another form.
    """
    pool = _pool()
    descriptor = pool.load(module)
    return message_factory.GetMessageClass(
        pool.descriptors.FindMessageTypeByName(f"{descriptor.package}.{message}")
    )


def serialized_file(module: str) -> bytes:
    """The serialized FileDescriptorProto that a generated module holds, read without importing it.

    Raises:
        ServingError: as `message_class`.
    """
    return _serialized_descriptor(module, ast.parse(_source(module)))


@functools.cache
def _pool() -> "_Pool":
    return _Pool()


class _Pool:
    """A descriptor pool that is filled from generated modules' source, dependencies first."""

    def __init__(self) -> None:
        self.descriptors = descriptor_pool.DescriptorPool()
        for file in _WELL_KNOWN:
            self.descriptors.AddSerializedFile(file.serialized_pb)
        self._loaded: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def load(self, module: str) -> descriptor_pb2.FileDescriptorProto:
        """The file descriptor of a generated module."""
        known = self._loaded.get(module)
        if known is not None:
            return known
        tree = ast.parse(_source(module))
        for dependency in _imported_modules(tree):
            self.load(dependency)
        serialized = _serialized_descriptor(module, tree)
        self.descriptors.AddSerializedFile(serialized)
        self._loaded[module] = descriptor_pb2.FileDescriptorProto.FromString(serialized)
        return self._loaded[module]


def _source(module: str) -> str:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)  # of a top-level package: finds it, runs nothing
    if spec is None or not spec.submodule_search_locations:
        raise ServingError(
            f"the package {package} is not installed; the client reads TensorFlow Serving's messages "
            "from it: install tensorflow-serving-api"
        )
    for location in spec.submodule_search_locations:
        path = Path(location, *rest).with_suffix(".py")
        if path.is_file():
            return path.read_text()
    raise ServingError(f"the package {package} has no module {module}; reinstall tensorflow-serving-api")


def _imported_modules(tree: ast.Module) -> list[str]:
    return [
        f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("google.")
        for alias in node.names
        if alias.name.endswith("_pb2")
    ]


def _serialized_descriptor(module: str, tree: ast.Module) -> bytes:
    """The literal in `AddSerializedFile(b"…")`, or in the `FileDescriptor(serialized_pb=_b("…"))` of older
    generators, where `_b` encodes Latin-1."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "AddSerializedFile":
            return bytes(ast.literal_eval(node.args[0]))
        if node.func.attr == "FileDescriptor":
            encoded = next(word.value for word in node.keywords if word.arg == "serialized_pb")
            assert isinstance(encoded, ast.Call)
            return str(ast.literal_eval(encoded.args[0])).encode("latin-1")
    raise ServingError(f"{module} holds no serialized descriptor; reinstall tensorflow-serving-api")
