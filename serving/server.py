"""The embedded server: what `isthmus serve` and `python -m isthmus.serving` run.

The order: bind both ports (a port in use ends the start within a second), import TensorFlow, load and warm up
the first version of every model, open the ports, announce them, wait for a signal, drain.
"""

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from isthmus.serving import model_config
from isthmus.serving.access_log import AccessLog
from isthmus.serving.admin import admin_application, admin_server
from isthmus.serving.batching_parameters import BatchingParameters, read_parameters
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import PortTakenError, RequestError, ServingError
from isthmus.serving.grpc_edge import GrpcEdge
from isthmus.serving.metrics import DEFAULT_PATH, Metrics
from isthmus.serving.prediction_log import PredictionLog
from isthmus.serving.private_messages import message_class
from isthmus.serving.rest_edge import RestEdge
from isthmus.serving.security import RELOAD_FROM, ApiTokens
from isthmus.serving.status import Code
from isthmus.serving.tensorflow_import import import_tensorflow
from isthmus.serving.tracing import Tracing
from isthmus.serving.versions import ModelSettings

if TYPE_CHECKING:
    from isthmus.serving.admin_api import AdminApi
    from isthmus.serving.manager import ModelManager

__all__ = ["EmbeddedServer", "serve"]

logger = logging.getLogger(__name__)

# What closing the models may take once nobody uses them, and what threads may take to end.
_UNLOAD_SECONDS = 2.0
_THREADS_END_SECONDS = 0.5
# Threads of executors, by their names: the interpreter waits for them at its end even when they are daemons, as those
# are that a daemon began.
_POOLS = ("grpc_", "rest_", "model-loader_")

# Python's default of 5 ms is what a request waits for each time a load or another request holds the interpreter.
_SWITCH_INTERVAL_S = 0.001


class EmbeddedServer:
    """The server as an object: `start`, the ports, `stop`. In one process there may be several.

    Raises:
        ServingError: no model was named, or a port cannot be bound.
    """

    def __init__(self, config: ServingConfig) -> None:
        self.config = config
        self._models = configured_models(config)
        check_verification_key(config)
        self._batching = configured_batching(config)
        check_parallelism(config)
        self._manager: ModelManager | None = None
        self._config_poller: threading.Thread | None = None
        self._stopping = threading.Event()
        self._metrics = Metrics()
        metrics_path = configured_metrics_path(config)
        self._access_log = None if config.access_log_file is None else AccessLog(config.access_log_file)
        self._predictions = (
            None
            if config.prediction_log_folder is None
            else PredictionLog(config.prediction_log_folder, config.prediction_log_sampling_rate)
        )
        self._admin_api: AdminApi | None = None
        self._tokens = None if config.api_token_file is None else ApiTokens(config.api_token_file)
        if config.reload_config_from not in RELOAD_FROM:
            raise ServingError(
                f"--reload_config_from={config.reload_config_from} is not one of {', '.join(RELOAD_FROM)}"
            )
        self._tracing = (
            Tracing(config.otlp_endpoint, config.otlp_sampling_rate) if config.otlp_endpoint else None
        )
        self._grpc = GrpcEdge(config, self._metrics, self._tokens, self._access_log, self._tracing)
        try:
            self._rest = self._bound_rest(metrics_path)
            self._admin = None if config.admin_port is None else admin_server(config)
        except ServingError:
            self._grpc.stop(0)
            raise

    def _bound_rest(self, metrics_path: str | None) -> RestEdge | None:
        """The REST API's port; None where it is the default one, and taken: two servers that were given a --port each
        do not meet."""
        try:
            return RestEdge(
                self.config,
                metrics_path=metrics_path,
                metrics=self._metrics,
                tokens=self._tokens,
                access_log=self._access_log,
                tracing=self._tracing,
            )
        except PortTakenError as error:
            self._go_without_rest(error)
            return None

    def _go_without_rest(self, error: PortTakenError) -> None:
        """Raises PortTakenError when a REST API was asked for."""
        if self.config.rest_api_port is not None:
            raise error
        logger.warning("no REST API: %s", error)

    @property
    def grpc_port(self) -> int:
        """Port of the gRPC API."""
        return self._grpc.port

    @property
    def rest_port(self) -> int | None:
        """Port of the REST API; None without one."""
        return None if self._rest is None else self._rest.port

    @property
    def admin_port(self) -> int | None:
        """Port of the admin pages; None without one."""
        return None if self._admin is None else self._admin.port

    def start(self) -> None:
        """Load the models, then serve; the admin port answers at once.

        Raises:
            ServingError: a model could not be loaded.
        """
        if self._admin is not None:
            self._admin.start(
                admin_application(self._metrics, self._missing_models, lambda: self._admin_api, self._tokens)
            )
        import_tensorflow()
        from isthmus.serving import loading
        from isthmus.serving.admin_api import AdminApi
        from isthmus.serving.manager import ModelManager
        from isthmus.serving.service import Service

        self._manager = ModelManager(
            loading.Loader(self.config, self._batching, self._metrics),
            poll_wait_seconds=self.config.file_system_poll_wait_seconds,
            max_num_load_retries=self.config.max_num_load_retries,
            load_retry_interval_seconds=self.config.load_retry_interval_micros / 1e6,
            num_load_threads=self.config.num_load_threads or 2,
            allow_labels_for_unavailable=self.config.allow_version_labels_for_unavailable_models,
        )
        self._admin_api = AdminApi(
            self._manager, self._metrics, timeout_ms=max(self.config.rest_api_timeout_in_ms, 0)
        )
        if self._stopping.is_set():
            self._manager.request_stop()
        self._manager.start()
        try:
            self._apply(self._models)
        except RequestError as error:
            raise ServingError(f"Failed to start server. Error: {error}") from error
        service = Service(self._manager, self.config, self._metrics, self._predictions)
        # Who finds one port open and asks the other finds that open, too: what takes long is done before or after.
        self._grpc.add(service)
        if self._rest is not None:
            try:
                self._rest.listen()
            except PortTakenError as error:
                self._go_without_rest(error)
                self._rest.stop()
                self._rest = None
        self._grpc.start()
        if self._rest is not None:
            self._rest.start(service.rest)
        if self.config.model_config_file is not None and self.config.model_config_file_poll_wait_seconds > 0:
            self._config_poller = threading.Thread(
                target=self._poll_config_file, name="model-config", daemon=True
            )
            self._config_poller.start()

    def _poll_config_file(self) -> None:
        """Apply model_config_file again and again, changed or not: it overrides what ReloadConfig requests
        set."""
        assert self.config.model_config_file is not None
        while not self._stopping.wait(self.config.model_config_file_poll_wait_seconds):
            try:
                self._apply(model_config.read_file(self.config.model_config_file))
            except ServingError as error:
                logger.error("the models stay as they are: %s", error)

    def _apply(self, models: list[ModelSettings] | None) -> None:
        """Serve these; a file without a configuration (None) changes nothing, so that one that is being
        written unloads no model.

        Raises:
            RequestError: as `ModelManager.reload`; FAILED_PRECONDITION for none after there was one.
        """
        assert self._manager is not None
        if models is not None:
            self._manager.reload(models)
        elif self._manager.is_configured():
            raise RequestError(
                Code.FAILED_PRECONDITION,
                "Cannot transition to requested config. It is only legal to transition from one "
                "ModelConfigList to another.",
            )
        else:
            logger.info("Taking no action for empty config.")

    def stop(self) -> None:
        """Refuse new requests on both wires, finish those in flight (at most drain_seconds, for both together),
        unload.

        A computation that outlasts that goes on in its thread, and its model stays loaded.
        """
        self._stopping.set()
        deadline = time.monotonic() + self.config.drain_seconds
        self._grpc.begin_stop(self.config.drain_seconds)
        if self._rest is not None:
            self._rest.stop()
        self._grpc.stop(max(deadline - time.monotonic(), 0))
        if self._manager is not None:
            # It waits for whoever uses a model, and some never end.
            unloading = threading.Thread(target=self._manager.stop, name="unload", daemon=True)
            unloading.start()
            unloading.join(max(deadline - time.monotonic(), 0) + _UNLOAD_SECONDS)
        for log in (self._access_log, self._predictions, self._tracing):
            if log is not None:
                log.stop()
        if self._admin is not None:
            self._admin.stop()

    def _missing_models(self) -> list[str] | None:
        manager = self._manager
        return None if manager is None or not manager.is_configured() else manager.missing_models()

    def abandon_start(self) -> None:
        """Make a `start` that is under way in another thread, or below a signal handler, give up."""
        self._stopping.set()
        if self._manager is not None:
            self._manager.request_stop()


def configured_models(config: ServingConfig) -> list[ModelSettings] | None:
    """The models that a configuration names; None for a model_config_file without any configuration.

    Raises:
        ServingError: there is none.
    """
    if config.model_config_file is not None:
        try:
            return model_config.read_file(config.model_config_file)
        except RequestError as error:
            raise ServingError(
                f"Failed to start server. Error: {error} ({config.model_config_file})"
            ) from error
    if config.model_base_path is None:
        raise ServingError(
            "no model to serve: give --model_base_path (with --model_name) or --model_config_file"
        )
    return [ModelSettings(name=config.model_name, base_path=config.model_base_path.absolute())]


def check_verification_key(config: ServingConfig) -> None:
    """Find out before TensorFlow is imported whether signatures can be verified.

    Raises:
        ServingError: the verification key cannot be used.
    """
    if config.verification_key is None:
        return
    from isthmus.lineage import signing

    try:
        signing.check_key(config.verification_key)
    except signing.SigningError as error:
        raise ServingError(f"--verification_key: {error}") from error


def configured_batching(config: ServingConfig) -> BatchingParameters | None:
    """The batching parameters of a configuration; None when batching is off.

    Raises:
        ServingError: the file is unreadable or contradicts itself, or is given while batching is off.
    """
    if not config.enable_batching:
        if config.batching_parameters_file is not None:
            raise _contradiction(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        return None
    return read_parameters(config.batching_parameters_file, num_cpus=os.cpu_count() or 1)


def check_parallelism(config: ServingConfig) -> None:
    """Refuse what the original refuses.

    Raises:
        ServingError: every flag about TensorFlow's threads is given.
    """
    if (
        config.tensorflow_session_parallelism > 0
        and config.tensorflow_intra_op_parallelism > 0
        and config.tensorflow_inter_op_parallelism > 0
    ):
        raise _contradiction(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )


def _contradiction(text: str) -> ServingError:
    """The original's own line about its flags."""
    return ServingError(f"Failed to start server. Error: {RequestError(Code.INVALID_ARGUMENT, text)}")


def configured_metrics_path(config: ServingConfig) -> str | None:
    """Where on the REST port Prometheus finds its page; None when monitoring is off.

    Raises:
        ServingError: the monitoring configuration is unreadable.
    """
    if config.monitoring_config_file is None:
        return None
    message = message_class("tensorflow.serving.MonitoringConfig")()
    monitoring = model_config.read_text_proto(config.monitoring_config_file, message)
    if not monitoring.prometheus_config.enable:
        return None
    return str(monitoring.prometheus_config.path) or DEFAULT_PATH


def serve(config: ServingConfig) -> None:
    """Run until SIGTERM or SIGINT; the chosen ports are announced on stdout as one JSON line once they
    listen.

    Raises:
        ServingError: as `EmbeddedServer`.
    """
    server = EmbeddedServer(config)
    asked_to_stop = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        logger.info("%s: finishing requests in flight", signal.Signals(number).name)
        asked_to_stop.set()
        server.abandon_start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    import_tensorflow()
    # What the imports made lives as long as the process: a collection after each unload need not walk it (100 ms).
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        server.start()
    except ServingError:
        server.stop()
        if asked_to_stop.is_set():
            _leave_unfinished()
            return
        raise
    announcement = {"grpc_port": server.grpc_port, "rest_port": server.rest_port}
    if server.admin_port is not None:
        announcement["admin_port"] = server.admin_port
    sys.stdout.write(json.dumps(announcement) + "\n")
    sys.stdout.flush()
    logger.info("serving on %s: gRPC %d, REST %s", config.host, server.grpc_port, server.rest_port)
    while not asked_to_stop.wait(1.0):
        if config.parent_pid and os.getppid() != config.parent_pid:
            logger.warning("the parent process %d is gone", config.parent_pid)
            break
    server.stop()
    _leave_unfinished()


def _leave_unfinished() -> None:
    """End the process here when a thread is still busy: nothing ends a load or a computation of TensorFlow's halfway,
    and the interpreter would wait for it."""
    deadline = time.monotonic() + _THREADS_END_SECONDS
    awaited = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.current_thread() and (not thread.daemon or thread.name.startswith(_POOLS))
    ]
    for thread in awaited:
        thread.join(max(deadline - time.monotonic(), 0))
    busy = sorted(thread.name for thread in awaited if thread.is_alive())
    if busy:
        logger.warning("leaving while %d threads are busy: %s", len(busy), ", ".join(busy))
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
