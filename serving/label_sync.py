"""Moving a model's version labels in models.config and on running servers.

A label may only name a version that is AVAILABLE, and one ReloadConfig request sets versions and labels at once. So
a server is led there in two requests: first it gets the wanted versions beside those that it serves, with the labels
that it has; when they are AVAILABLE, it gets the wanted labels and only their versions. No label is ever without a
version between them. A ReloadConfig request replaces *all* that a server serves: what else there is comes from
models.config, which is read, changed in one entry and written back (by one rename; comments are lost).

It imports no tensorflow.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.grpc_client import GrpcClient
from isthmus.serving.status import Code
from isthmus.serving.wire_messages import message_class

__all__ = ["LABELS", "LabelSync", "WantedLabels", "labels_on"]

logger = logging.getLogger(__name__)

LABELS = ("stable", "canary")
"""The labels that are moved; others in models.config stay, and so do their versions."""

_CALL_TIMEOUT_S = 10.0
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class WantedLabels:
    """What servers should say about one model."""

    name: str
    labels: Mapping[str, int]
    """Version by label."""
    base_path: str | None
    """Absolute folder (or URI) with the version folders, where the configuration names none yet."""


@dataclass(frozen=True, kw_only=True)
class LabelSync:
    """Tells servers and models.config."""

    servers: tuple[str, ...] = ()
    """HOST:PORT of each server's gRPC API."""
    models_config: Path | None = None
    """ModelServerConfig in text format; made when it is missing."""
    only_model: bool = False
    """The servers serve no other model: do without models_config."""
    token: str | None = None
    """For servers that want an API token."""
    ca_file: Path | None = None
    """Certificates (PEM) that vouch for servers with TLS."""
    timeout_s: float = 120.0
    """How long a server may take until the wanted versions are AVAILABLE."""
    clients: dict[str, GrpcClient] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tell(self, wanted: WantedLabels) -> dict[str, str | None]:
        """Tell everybody; returns {server or file: why it could not be told, or None}.

        Raises:
            ServingError: nobody was told anything, because models.config cannot be read or is not given.
        """
        if self.servers and self.models_config is None and not self.only_model:
            raise ServingError(
                f"a ReloadConfig request replaces everything that a server serves: give --models-config, the file "
                f"with its other models, or --only-model if {wanted.name} is all that it serves"
            )
        if not wanted.labels:
            raise ServingError(f"no champion of {wanted.name} was ever pushed: there is no version to label")
        with _locked(self.models_config):
            config = read_config(self.models_config)
            outcome: dict[str, str | None] = {}
            there = {server: self._available(server, wanted.name) for server in self.servers}
            if self.models_config is not None and self.servers:
                serving = {
                    number
                    for versions in there.values()
                    if not isinstance(versions, str)
                    for number in versions
                }
                _write(
                    self.models_config,
                    merged(config, wanted, keep=serving, labels=_labels_in(config, wanted.name)),
                )
                logger.debug("step: models.config prepared")
            for server in self.servers:
                found = there[server]
                outcome[server] = (
                    found if isinstance(found, str) else self._move(server, wanted, config, found)
                )
            if self.models_config is not None:
                _write(self.models_config, merged(config, wanted, labels=wanted.labels))
                logger.debug("step: models.config written")
                outcome[str(self.models_config)] = None
        return outcome

    def _client(self, server: str) -> GrpcClient:
        if server not in self.clients:
            host, separator, port = server.rpartition(":")
            if not separator or not port.isdecimal():
                raise ServingError(
                    f"{server!r} is no server: write HOST:PORT with the gRPC port, such as localhost:8500"
                )
            credentials = None
            if self.ca_file is not None:
                import grpc

                credentials = grpc.ssl_channel_credentials(self.ca_file.read_bytes())
            self.clients[server] = GrpcClient(
                host=host,
                port=int(port),
                timeout_s=_CALL_TIMEOUT_S,
                token=self.token,
                credentials=credentials,
            )
        return self.clients[server]

    def _available(self, server: str, name: str) -> set[int] | str:
        """The versions that a server has AVAILABLE, or why it cannot be asked."""
        try:
            return available_versions(self._client(server), name)
        except (ServingError, OSError) as error:
            return " ".join(str(error).split())

    def _move(self, server: str, wanted: WantedLabels, config: Any, serving: set[int]) -> str | None:
        client = self._client(server)
        try:
            now = labels_on(client, wanted.name)
            if {label: now.get(label) for label in LABELS} == {
                label: wanted.labels.get(label) for label in LABELS
            }:
                return None
            missing = set(wanted.labels.values()) - serving
            if missing:
                client.reload_config(merged(config, wanted, keep=serving, labels=now))
                logger.debug("step: versions asked for")
                self._wait(client, wanted.name, missing)
            logger.debug("step: versions available")
            client.reload_config(merged(config, wanted, labels=wanted.labels))
            logger.debug("step: labels moved")
            now = labels_on(client, wanted.name)
        except ServingError as error:
            return " ".join(str(error).split())
        return None if now == dict(wanted.labels) else f"afterwards it said {now}"

    def _wait(self, client: GrpcClient, name: str, versions: Iterable[int]) -> None:
        """Until all are AVAILABLE. Raises ServingError with the server's own error when one is not."""
        deadline = time.monotonic() + self.timeout_s
        for version in sorted(versions):
            while True:
                try:
                    (status,) = client.status(name, version=version)
                    state, problem = status.state, status.error_message
                except RequestError as error:
                    if error.code is not Code.NOT_FOUND:
                        raise
                    state, problem = "NOT_FOUND", error.message
                if state == "AVAILABLE":
                    break
                if (state == "END" and problem) or time.monotonic() >= deadline:
                    raise ServingError(
                        f"version {version} is {state} there: {problem or 'not loaded in time'}"
                    )
                time.sleep(_POLL_S)


def available_versions(client: GrpcClient, name: str) -> set[int]:
    """The versions of a model that a server has AVAILABLE; none where it does not serve the model."""
    try:
        return {status.version for status in client.status(name) if status.state == "AVAILABLE"}
    except RequestError as error:
        if error.code is Code.NOT_FOUND:
            return set()
        raise


def labels_on(client: GrpcClient, name: str, labels: Iterable[str] = LABELS) -> dict[str, int]:
    """{label: version} of those of `labels` that a server knows."""
    found = {}
    for label in labels:
        try:
            found[label] = client.labelled_version(name, label)
        except RequestError as error:
            if error.code not in (Code.INVALID_ARGUMENT, Code.NOT_FOUND):
                raise
    return found


def read_config(path: Path | None) -> Any:
    """A ModelServerConfig; empty when there is no such file yet.

    Raises:
        ServingError: the file is unreadable, or is none.
    """
    config = message_class("tensorflow_serving.config.model_server_config_pb2", "ModelServerConfig")()
    if path is None or not path.exists():
        return config
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ServingError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if config.WhichOneof("config") == "custom_model_config":
        raise ServingError(f"{path} holds a custom_model_config; labels need a model_config_list")
    return config


def merged(config: Any, wanted: WantedLabels, *, labels: Mapping[str, int], keep: Iterable[int] = ()) -> Any:
    """A copy of a ModelServerConfig in which one model has these labels, and serves their versions and `keep`.

    Everything else stays: the other models, and the base path of this one.

    Raises:
        ServingError: the model is new to the configuration and its base path is not known.
    """
    changed = type(config)()
    changed.CopyFrom(config)
    entries = changed.model_config_list.config
    entry = next((each for each in entries if each.name == wanted.name), None)
    if entry is None:
        if wanted.base_path is None:
            raise ServingError(f"{wanted.name} was never pushed: there is no base path to serve it from")
        entry = entries.add(name=wanted.name, base_path=wanted.base_path, model_platform="tensorflow")
    labels = {label: number for label, number in entry.version_labels.items() if label not in LABELS} | dict(
        labels
    )
    numbers = {*wanted.labels.values(), *labels.values(), *keep}
    del entry.model_version_policy.specific.versions[:]
    entry.model_version_policy.specific.versions.extend(sorted(numbers))
    entry.version_labels.clear()
    entry.version_labels.update(labels)
    return changed


def _labels_in(config: Any, name: str) -> dict[str, int]:
    return {
        label: version
        for entry in config.model_config_list.config
        if entry.name == name
        for label, version in entry.version_labels.items()
    }


def _write(path: Path, config: Any) -> None:
    """Beside and renamed: a server that polls the file reads the old one or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text_format.MessageToString(config), encoding="utf-8")
    os.replace(beside, path)


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Two commands that change one models.config take turns."""
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "ab")  # noqa: SIM115
    except OSError as error:
        raise ServingError(f"cannot write beside {path}: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
