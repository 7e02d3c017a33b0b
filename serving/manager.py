"""The versions that run: polls the base paths, loads, swaps and unloads, and hands out models to requests.

One thread drives everything (`ModelManager._drive`): it looks at the base paths, asks `versions.next_action`
for each model, and gives loads and unloads to a small pool. Requests only ever read a table that is replaced
as a whole.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from isthmus.serving.base_paths import BasePaths
from isthmus.serving.errors import RequestError
from isthmus.serving.routing import ModelRef
from isthmus.serving.savedmodel import LoadedModel
from isthmus.serving.servable import Loader, Servable, load_error
from isthmus.serving.status import Code
from isthmus.serving.versions import (
    Labels,
    ModelSettings,
    Snapshot,
    State,
    assigned_labels,
    next_action,
)

__all__ = ["ModelManager"]

logger = logging.getLogger(__name__)

Available = tuple[tuple[int, ...], dict[int, Servable]]
_NOTHING: Available = ((), {})


class ModelManager:
    """Keeps the models of `configure` served, as the folders under their base paths come and go.

    Args:
        load: loads and warms up one version.
        poll_wait_seconds: between two looks at the base paths; 0 looks once per configuration, negative
            never.
        max_num_load_retries: how often a failed load is tried again.
        load_retry_interval_seconds: the pause between two attempts; negative for none.
        num_load_threads: versions loaded at the same time.
        allow_labels_for_unavailable: let a new label name a version that is not available yet.
    """

    def __init__(
        self,
        load: Loader,
        *,
        poll_wait_seconds: float = 1.0,
        max_num_load_retries: int = 5,
        load_retry_interval_seconds: float = 60.0,
        num_load_threads: int = 2,
        allow_labels_for_unavailable: bool = False,
    ) -> None:
        self._load = load
        self._poll_wait_seconds = poll_wait_seconds
        self._max_num_load_retries = max_num_load_retries
        self._load_retry_interval_seconds = load_retry_interval_seconds
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._labels: Labels = {}
        self._reloading = threading.Lock()
        self._settings: dict[str, ModelSettings] = {}
        self._is_configured = False
        self._servables: dict[str, dict[int, Servable]] = {}
        # name -> (versions ascending, servable by version); replaced as a whole, read without the lock.
        self._available: dict[str, Available] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._poll_now = True
        self._base_paths = BasePaths()
        self._pool = ThreadPoolExecutor(num_load_threads, thread_name_prefix="model-loader")
        self._driver = threading.Thread(target=self._drive, name="model-manager", daemon=True)

    # ---- what the server tells it ----

    def start(self) -> None:
        """Begin to poll and load."""
        self._driver.start()

    def reload(self, models: Iterable[ModelSettings], *, timeout_s: float | None = None) -> None:
        """Serve exactly these models from now on; return when those that are new have an available version.

        Models that are not listed any more are unloaded. New versions of known models are not waited for.

        Raises:
            RequestError: FAILED_PRECONDITION when a label names a version that is not available (nothing is
                changed then); UNKNOWN when a new model could not be loaded; DEADLINE_EXCEEDED.
        """
        settings = {model.name: model for model in models}
        if not self._reloading.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise RequestError(Code.DEADLINE_EXCEEDED, "another configuration is still being loaded")
        try:
            # The original words the first configuration's failure and a later one's differently.
            what = "model" if self._settings else "servable"
            new = settings.keys() - self._settings.keys()
            self._configure(settings)
            self.wait_until_available(new, what=what, timeout_s=timeout_s)
        finally:
            self._reloading.release()

    def _configure(self, settings: dict[str, ModelSettings]) -> None:
        with self._changed:
            available = {name: versions for name, (versions, _) in self._available.items()}
            self._labels = assigned_labels(
                settings.values(),
                available,
                self._labels,
                allow_unavailable=self._allow_labels_for_unavailable,
            )
            self._settings, self._is_configured = settings, True
            for name, servables in self._servables.items():
                if name not in settings:
                    for servable in servables.values():
                        servable.is_aspired = False
            self._poll_now = True
            self._changed.notify_all()

    def wait_until_available(
        self, names: Iterable[str], *, what: str = "servable", timeout_s: float | None = None
    ) -> None:
        """Return when each of the models has an available version.

        Raises:
            RequestError: UNKNOWN when every version of a model failed to load, with each one's error;
                DEADLINE_EXCEEDED; CANCELLED when the manager was stopped.
        """
        waited = set(names)
        with self._changed:
            done = self._changed.wait_for(lambda: self._stopping or self._settled(waited), timeout_s)
            missing = sorted(name for name in waited if not self._available.get(name, _NOTHING)[0])
            failed = [
                s for name in missing for s in self._servables.get(name, {}).values() if s.error is not None
            ]
        if failed:
            listing = "".join(
                f"{{{{name: {s.name} version: {s.version}}} due to error: {s.error}}}, " for s in failed
            )
            raise RequestError(
                Code.UNKNOWN, f"{len(failed)} {what}(s) did not become available: {{{listing}}}"
            )
        if not done:
            raise RequestError(
                Code.DEADLINE_EXCEEDED, f"no version of {', '.join(missing)} became available in time"
            )
        if missing:
            raise RequestError(
                Code.CANCELLED, f"stopped before a version of {', '.join(missing)} was available"
            )

    def request_stop(self) -> None:
        """Stop polling and loading, and end every wait; safe in a signal handler."""
        self._stopping = True
        threading.Thread(target=self._wake, name="model-manager-stop", daemon=True).start()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop polling and unload everything; requests in flight are waited for, loads under way are not."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._driver.is_alive():
            self._driver.join()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for servables in self._servables.values():
            for servable in servables.values():
                if servable.state is State.AVAILABLE:
                    servable.state = State.UNLOADING
                    self._publish(servable.name)
                    self._unload(servable)

    # ---- what requests ask it ----

    @contextmanager
    def model(self, ref: ModelRef) -> Iterator[tuple[LoadedModel, int]]:
        """The loaded model that a request names, with its version number.

        Raises:
            RequestError: INVALID_ARGUMENT without a name or with an unknown label; NOT_FOUND `Servable not
                found for request: Latest(name)` or `Specific(name, version)`.
        """
        while True:
            servable = self._find(ref)
            model = servable.acquire()
            if model is not None:
                break
        try:
            yield model, servable.version
        finally:
            servable.release()

    def statuses(self, ref: ModelRef) -> list[Servable]:
        """Every version of the model that this process ever saw, newest first; or the one version that ref
        names by number. A label is not looked at, as in the original.

        Raises:
            RequestError: NOT_FOUND.
        """
        version = ref.version
        with self._changed:
            servables = self._servables.get(ref.name, {})
            if version is None:
                if not servables:
                    raise RequestError(Code.NOT_FOUND, f"Could not find any versions of model {ref.name}")
                return [servables[number] for number in sorted(servables, reverse=True)]
            if version not in servables:
                raise RequestError(Code.NOT_FOUND, f"Could not find version {version} of model {ref.name}")
            return [servables[version]]

    def overview(self) -> list[tuple[ModelSettings, list[Servable], Mapping[str, int]]]:
        """Every configured model by name, with its versions (newest first) and its labels."""
        with self._changed:
            return [
                (
                    settings,
                    [s for _, s in sorted(self._servables.get(name, {}).items(), reverse=True)],
                    self._labels.get(name, {}),
                )
                for name, settings in sorted(self._settings.items())
            ]

    def is_loading(self) -> bool:
        """Whether a load is under way."""
        return any(s.state is State.LOADING for known in self._servables.values() for s in [*known.values()])

    def is_configured(self) -> bool:
        """Whether it was ever told what to serve, be it nothing."""
        return self._is_configured

    def missing_models(self) -> list[str]:
        """The configured models that have no available version."""
        return sorted(name for name in self._settings if not self._available.get(name, _NOTHING)[0])

    def _find(self, ref: ModelRef) -> Servable:
        if not ref.name:
            raise RequestError(Code.INVALID_ARGUMENT, "ModelSpec has no name specified.")
        version = self._version_of(ref)
        versions, servables = self._available.get(ref.name, _NOTHING)
        if version is None:
            if versions:
                return servables[versions[-1]]
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: Latest({ref.name})")
        if version in servables:
            return servables[version]
        raise RequestError(Code.NOT_FOUND, f"Servable not found for request: Specific({ref.name}, {version})")

    def _version_of(self, ref: ModelRef) -> int | None:
        if ref.label is None:
            return ref.version
        version = self._labels.get(ref.name, {}).get(ref.label)
        if version is None:
            raise RequestError(Code.INVALID_ARGUMENT, f"Unrecognized servable version label: {ref.label}")
        return version

    # ---- the driving thread ----

    def _drive(self) -> None:
        next_poll = 0.0
        while True:
            with self._changed:
                if self._stopping:
                    return
                due = self._poll_now or (self._poll_wait_seconds > 0 and time.monotonic() >= next_poll)
                self._poll_now = False
            if due:
                next_poll = time.monotonic() + self._poll_wait_seconds
                self._poll()
            self._act()
            with self._changed:
                if not self._stopping and not self._poll_now:
                    pause = next_poll - time.monotonic() if self._poll_wait_seconds > 0 else None
                    self._changed.wait(None if pause is None else max(pause, 0.0))

    def _poll(self) -> None:
        for settings in list(self._settings.values()):
            known = self._servables.get(settings.name, {})
            running = {version for version, servable in known.items() if servable.state is not State.END}
            wanted = self._base_paths.wanted_versions(settings, running)
            if wanted is None:
                continue
            with self._changed:
                if settings.name in self._settings:
                    self._aspire(settings, wanted)

    def _aspire(self, settings: ModelSettings, wanted: Mapping[int, str]) -> None:
        servables = self._servables.setdefault(settings.name, {})
        for version, servable in servables.items():
            servable.is_aspired = version in wanted
        for version, folder in wanted.items():
            known = servables.get(version)
            failed = known is not None and known.error is not None
            if known is None or (known.state is State.END and not failed):
                servables[version] = Servable(settings.name, version, settings.base_path / folder)
        for version in [v for v, s in servables.items() if s.error is not None and not s.is_aspired]:
            # Gone from disk: should it come back, it is a new version to try.
            servables[version].error = None

    def _act(self) -> None:
        with self._changed:
            for servables in self._servables.values():
                while True:
                    snapshots = [Snapshot(s.version, s.state, s.is_aspired) for s in servables.values()]
                    action = next_action(snapshots)
                    if action is None:
                        break
                    servable = servables[action.version]
                    if action.kind == "load":
                        servable.state = State.LOADING
                        self._submit(self._load_with_retries, servable)
                    else:
                        servable.state = State.UNLOADING
                        self._publish(servable.name)
                        self._submit(self._unload, servable)

    def _submit(self, job: Callable[[Servable], None], servable: Servable) -> None:
        self._pool.submit(job, servable).add_done_callback(lambda future: _log_crash(future.exception()))

    def _publish(self, name: str) -> None:
        """Replace the table that requests read."""
        ready = {v: s for v, s in sorted(self._servables[name].items()) if s.state is State.AVAILABLE}
        self._available = {**self._available, name: (tuple(ready), ready)}

    # ---- the pool's threads ----

    def _load_with_retries(self, servable: Servable) -> None:
        error: RequestError | None = None
        for attempt in range(self._max_num_load_retries + 1):
            if attempt and not self._pause_before_retry(servable):
                break
            started = time.monotonic()
            try:
                servable.model = self._load(servable.name, servable.version, servable.path)
            except Exception as failure:  # noqa: BLE001 - whatever it is, the version must end with it
                error = load_error(failure)
                logger.warning("loading %s version %d failed: %s", servable.name, servable.version, error)
                continue
            error = None
            logger.info(
                "%s version %d is available (%.1f s)",
                servable.name,
                servable.version,
                time.monotonic() - started,
            )
            break
        with self._changed:
            servable.error = error
            servable.state = State.AVAILABLE if error is None else State.END
            self._publish(servable.name)
            self._changed.notify_all()

    def _pause_before_retry(self, servable: Servable) -> bool:
        """False when there is no use in trying again."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or not servable.is_aspired, max(self._load_retry_interval_seconds, 0.0)
            )
            return not self._stopping and servable.is_aspired

    def _unload(self, servable: Servable) -> None:
        model = servable.retire()
        if model is not None:
            model.close()
        with self._changed:
            servable.state = State.END
            self._publish(servable.name)
            self._changed.notify_all()
        logger.info("%s version %d is unloaded", servable.name, servable.version)

    def _settled(self, names: Iterable[str]) -> bool:
        """Whether every model is available, or one of them can no longer become so by itself."""
        all_available = True
        for name in names:
            if self._available.get(name, _NOTHING)[0]:
                continue
            all_available = False
            servables = [s for s in self._servables.get(name, {}).values() if s.is_aspired]
            if servables and all(s.error is not None for s in servables):
                return True
        return all_available


def _log_crash(error: BaseException | None) -> None:
    if error is not None:
        logger.error("a load or unload crashed", exc_info=error)
