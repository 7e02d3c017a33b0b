"""The look at a model's base path: which complete versions lie there, and which of them should be served."""

import logging
from collections.abc import Collection
from pathlib import Path

from isthmus.serving.errors import ServingError
from isthmus.serving.savedmodel import is_complete
from isthmus.serving.versions import ModelSettings, aspired_versions, parse_version

__all__ = ["BasePaths", "newest_version"]

logger = logging.getLogger(__name__)


class BasePaths:
    """Looks at base paths, and warns once (not with every look) about one that has nothing to serve."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, str]] = set()
        self._unreadable: dict[str, set[str]] = {}

    def wanted_versions(self, settings: ModelSettings, running: Collection[int]) -> dict[int, str] | None:
        """The folder's name by version, of the versions that the model's policy asks for.

        Args:
            settings: the model.
            running: versions that run; their folders count though their graph file may be gone already.

        Returns:
            None when the base path cannot be read: that says nothing about what to serve, what runs goes on.
        """
        try:
            folders, unreadable = _complete_versions(settings, running)
        except OSError as error:
            self._warn_once(
                settings.name,
                f"Could not find base path {settings.base_path} for servable {settings.name}: {error}",
            )
            return None
        for text in sorted(unreadable - self._unreadable.get(settings.name, set())):
            logger.warning("A version of servable %s cannot be read: %s", settings.name, text)
        self._unreadable[settings.name] = unreadable
        wanted = aspired_versions(folders, settings.policy)
        if wanted:
            self._warned = {pair for pair in self._warned if pair[0] != settings.name}
        else:
            self._warn_once(
                settings.name,
                f"No versions of servable {settings.name} found under base path {settings.base_path}. "
                "Did you forget to name your leaf directory as a number (eg. '/1/')?",
            )
        return dict(wanted)

    def _warn_once(self, name: str, text: str) -> None:
        if (name, text) not in self._warned:
            self._warned.add((name, text))
            logger.warning("%s", text)


def newest_version(base_path: Path) -> Path:
    """The folder of the newest complete version under a base path.

    Raises:
        ServingError: there is none.
    """
    try:
        found, _ = _complete_versions(ModelSettings(name="", base_path=base_path), ())
    except OSError as error:
        raise ServingError(f"cannot read the base path {base_path}: {error.strerror}") from error
    if not found:
        raise ServingError(
            f"no version under {base_path}: versions are numbered folders with a saved_model.pb"
        )
    return base_path / found[max(found)]


def _complete_versions(settings: ModelSettings, running: Collection[int]) -> tuple[dict[int, str], set[str]]:
    """The folders' names by version, and why folders cannot be looked into (others are served all the same, and one
    that runs goes on).

    Raises:
        OSError: the base path itself cannot be read.
    """
    found: dict[int, str] = {}
    unreadable: set[str] = set()
    for folder in sorted(settings.base_path.iterdir()):
        version = parse_version(folder.name)
        if version is None:
            continue
        try:
            is_there = is_complete(folder) or (version in running and folder.is_dir())
        except OSError as error:
            is_there = version in running
            unreadable.add(str(error))
        if is_there:
            found[version] = folder.name
    return found, unreadable
