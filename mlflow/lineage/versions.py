"""Registered versions as the store has them: listing, finding, the holders of the aliases.

Call `tracking.connect` first: these functions use the store that it chose.
"""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.lineage import history, tracking
from isthmus.lineage.errors import LineageError
from isthmus.lineage.places import is_remote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

METRIC_TAG = "isthmus.metric."
"""What the tag of an evaluation metric starts with."""
_PAGE = 10_000
_MAX_ALIAS_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version as the store has it."""

    name: str
    version: int
    model_id: str | None
    """The SavedModel's LoggedModel."""
    run_id: str | None
    """The pipeline run that registered it."""
    created: str
    """UTC, ISO 8601."""
    aliases: tuple[str, ...]
    tags: dict[str, str]
    """All tags; those of isthmus start with `isthmus.`."""

    def tag(self, key: str) -> str | None:
        """The tag `isthmus.<key>`; None when it is missing."""
        return self.tags.get(tracking.TAG + key)

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation metrics that the pipeline registered."""
        found = {key.removeprefix(METRIC_TAG): value for key, value in self.tags.items() if METRIC_TAG in key}
        return {key: float(value) for key, value in sorted(found.items())}

    @property
    def bundle(self) -> Path | None:
        """The folder of the bundle it came from; None where that is no folder of a file system."""
        place = self.bundle_place
        return None if place is None or is_remote(place) else Path(place)

    @property
    def bundle_place(self) -> str | None:
        """The bundle it came from: a folder, or a place in an object store."""
        return self.tag("bundle")

    @property
    def pushed_place(self) -> str | None:
        """What TensorFlow Serving loads: a folder, or a place in an object store."""
        return self.tag("pushed_path")

    @property
    def pushed_path(self) -> Path | None:
        """The folder that TensorFlow Serving loads; None where it is no folder of a file system."""
        place = self.pushed_place
        return None if place is None or is_remote(place) else Path(place)

    @property
    def served_version(self) -> int | None:
        """The version number under which it is served (the pushed folder's name)."""
        text = self.tag("served_version")
        return int(text) if text else None

    @property
    def saved_model_digest(self) -> str | None:
        """`tree_digest` of saved_model/ without the manifest copies."""
        return self.tag("saved_model_digest")

    @property
    def parity_passed(self) -> bool:
        """Whether every parity stage had passed when it was exported."""
        return self.tag("parity_passed") == "true"

    @property
    def overrides(self) -> list[dict[str, Any]]:
        """Gates that somebody overrode at export, with who and why."""
        return list(json.loads(self.tag("overrides") or "[]"))

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "created": self.created,
            "model_id": self.model_id,
            "run_id": self.run_id,
            "metrics": self.metrics,
            "tags": dict(sorted(self.tags.items())),
        }


def store_client() -> MlflowClient:
    """A client on the store that `tracking.connect` chose."""
    from mlflow import MlflowClient

    return MlflowClient()


def user_name(by: str | None) -> str:
    """`by`, or the login name."""
    return by or getpass.getuser()


def list_models() -> list[str]:
    """The registered model names, sorted; the history logs are not models."""
    names: list[str] = []
    client, token = store_client(), None
    while True:
        page = client.search_registered_models(max_results=1000, page_token=token)
        names += [model.name for model in page if not history.is_log(model.name)]
        token = page.token
        if not token:
            return sorted(names)


def list_versions(name: str | None = None) -> list[Version]:
    """All versions of a model, newest first; of every model when no name is given.

    Raises LineageError, with the names there are, for an unknown name.
    """
    if name is None:
        return [version for each in list_models() for version in list_versions(each)]
    aliases = _aliases(name)
    return sorted(_search(f"name='{name}'", aliases), key=lambda version: -version.version)


def find(name: str | None = None, **tags: str) -> list[Version]:
    """Versions, oldest first, that carry all of these `isthmus.` tags: `find(dataset_digest="ab…")`."""
    terms = [f"name='{name}'"] if name else []
    terms += [f"tags.`{tracking.TAG}{key}`='{value}'" for key, value in tags.items()]
    found = [version for version in _search(" and ".join(terms), None) if not history.is_log(version.name)]
    return sorted(found, key=lambda version: (version.name, version.version))


def get(name: str, which: int | str) -> Version:
    """One version by its number or by an alias (`champion`, `challenger` or your own).

    Raises LineageError, saying what there is.
    """
    aliases = _aliases(name)
    number = aliases.get(str(which), which)
    if not str(number).isdigit():
        known = ", ".join(f"{alias} = {version}" for alias, version in sorted(aliases.items())) or "none"
        raise LineageError(f"{name} has no alias {which!r}; its aliases: {known}")
    return _get_number(name, int(number), aliases)


def _get_number(name: str, number: int, aliases: Mapping[str, int]) -> Version:
    from mlflow.exceptions import MlflowException

    try:
        return _version(store_client().get_model_version(name, str(number)), aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(str(version.version) for version in list_versions(name)) or "none"
        raise LineageError(f"{name} has no version {number}; its versions: {known}") from error


def _aliases(name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        model = store_client().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(list_models()) or "none yet (a pipeline that pushes registers the first)"
        raise LineageError(f"no registered model {name!r}; registered models: {known}") from error
    return {alias: int(version) for alias, version in model.aliases.items()}


def _search(filter_string: str, aliases: Mapping[str, int] | None) -> list[Version]:
    found: list[Version] = []
    client, token = store_client(), None
    of_model: dict[str, Mapping[str, int]] = {}
    while True:
        page = client.search_model_versions(filter_string, max_results=_PAGE, page_token=token)
        for row in page:
            if row.name not in of_model:
                of_model[row.name] = aliases if aliases is not None else _aliases(row.name)
            found.append(_version(row, of_model[row.name]))
        token = page.token
        if not token:
            return found


def _version(row: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(row.version)
    return Version(
        name=row.name,
        version=number,
        model_id=row.model_id or row.tags.get("isthmus.saved_model_id"),
        run_id=row.run_id or None,
        created=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds"),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == number)),
        tags=dict(row.tags),
    )


def settle_aliases(client: MlflowClient, name: str) -> list[str]:
    """Make the aliases say what the history says; returns one line for each that did not.

    They differ after a command was killed between its entry and its alias, and when somebody moved an alias
    with MLflow's own tools. The history is right in both cases.
    """
    from mlflow.exceptions import MlflowException

    lines: list[str] = []
    failures = 0
    while True:
        entries = history.read(client, name)
        wanted = {entry.alias: entry.to_version for entry in entries if entry.effective}
        present = _aliases(name)
        wrong = {alias: number for alias, number in wanted.items() if present.get(alias) != number}
        if not wrong:
            return lines
        for alias, number in wrong.items():
            if alias in present:
                lines.append(
                    f"alias {alias} of {name} pointed at {present[alias]}; the history says {number}: moved"
                )
            try:
                client.set_registered_model_alias(name, alias, str(number))
            except MlflowException as error:
                # Two commands that make the same alias at once: the store refuses one of the two rows. Look again.
                failures += 1
                if failures > _MAX_ALIAS_FAILURES:
                    raise
                log.debug("alias %s of %s: %s", alias, name, error)


def champion(name: str) -> Version | None:
    """The present champion; None when the model is unknown or has none."""
    return _holder(name, "champion")


def challenger(name: str) -> Version | None:
    """The version registered last; None when the model is unknown."""
    return _holder(name, "challenger")


def _holder(name: str, alias: str) -> Version | None:
    if name not in list_models():
        return None
    for line in settle_aliases(store_client(), name):
        log.warning("%s", line)
    aliases = _aliases(name)
    return _get_number(name, aliases[alias], aliases) if alias in aliases else None


def diff(name: str, one: int | str, other: int | str) -> dict[str, tuple[str | None, str | None]]:
    """{tag or metric: (value in one, value in other)} for everything that differs between two versions."""
    left, right = get(name, one).tags, get(name, other).tags
    keys = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    return {key.removeprefix(tracking.TAG): (left.get(key), right.get(key)) for key in keys}
