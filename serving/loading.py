"""What happens between a version folder and an AVAILABLE version: load, batch, warm up."""

import logging
import os
import time
from pathlib import Path

from isthmus.lineage import signing
from isthmus.serving import batching_parameters, warmup
from isthmus.serving.batching import BatchedModel
from isthmus.serving.batching_parameters import BatchingParameters
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.image_limits import PixelGuard
from isthmus.serving.metrics import Metrics
from isthmus.serving.savedmodel import LoadedModel, SavedModel, SessionOptions
from isthmus.serving.status import Code

__all__ = ["Loader", "session_options"]

logger = logging.getLogger(__name__)


def _check_signature(path: Path, key: Path) -> None:
    refusal = signing.refusal(path, key)
    if refusal is not None:
        raise RequestError(Code.FAILED_PRECONDITION, f"not loaded: {refusal}")


def session_options(config: ServingConfig) -> SessionOptions:
    """What a configuration says about TensorFlow's sessions."""
    threads = config.tensorflow_intra_op_parallelism, config.tensorflow_inter_op_parallelism
    if max(threads) <= 0:
        threads = (config.tensorflow_session_parallelism,) * 2
    return SessionOptions(
        tags=tuple(config.saved_model_tags.split(",")),
        intra_op_threads=threads[0],
        inter_op_threads=threads[1],
        gpu_memory_fraction=config.per_process_gpu_memory_fraction,
    )


class Loader:
    """Loads versions as the configuration says."""

    def __init__(
        self, config: ServingConfig, parameters: BatchingParameters | None, metrics: Metrics
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._parameters = parameters
        self._options = session_options(config)

    def __call__(self, name: str, version: int, path: Path) -> LoadedModel:
        """Load one version and replay its warm-up.

        Raises:
            RequestError: the model cannot be loaded, or a warm-up request fails; FAILED_PRECONDITION when the
                configured key did not sign it as it is now.
        """
        if self._config.verification_key is not None:
            _check_signature(path, self._config.verification_key)
        model = self._loaded(path)
        if self._config.enable_model_warmup:
            try:
                self._warm_up(model, name, version)
            except BaseException:
                model.close()
                raise
        return model

    def _loaded(self, path: Path) -> LoadedModel:
        parameters, started, succeeded = self._parameters_of(path), time.perf_counter(), False
        try:
            model: LoadedModel = SavedModel(path, self._options)
            succeeded = True
        finally:
            self._metrics.load_attempt(
                model_path=str(path), succeeded=succeeded, duration_us=(time.perf_counter() - started) * 1e6
            )
        if parameters is not None:
            model = BatchedModel(model, parameters, self._metrics)
        max_pixels = self._config.max_image_pixels
        # Before the queue: the images that share a batch with a bomb are answered.
        return PixelGuard(model, max_pixels) if max_pixels > 0 else model

    def _warm_up(self, model: LoadedModel, name: str, version: int) -> None:
        started, code = time.perf_counter(), Code.INTERNAL
        try:
            num_records = warmup.replay(
                model, num_iterations=max(self._config.num_request_iterations_for_warmup, 1)
            )
            code = Code.OK
        except RequestError as error:
            code = error.code
            raise
        finally:
            self._metrics.warmup(
                model_path=str(model.path),
                status=code.name,
                duration_us=(time.perf_counter() - started) * 1e6,
            )
        logger.debug("%s version %d: %d warm-up records", name, version, num_records)

    def _parameters_of(self, path: Path) -> BatchingParameters | None:
        own = path / batching_parameters.PER_MODEL_FILE
        if (
            self._parameters is None
            or not self._config.enable_per_model_batching_parameters
            or not own.is_file()
        ):
            return self._parameters
        try:
            return batching_parameters.read_parameters(own, num_cpus=os.cpu_count() or 1)
        except ServingError as error:
            raise RequestError(Code.INVALID_ARGUMENT, str(error)) from error
