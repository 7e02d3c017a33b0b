"""What happens between a version folder and an AVAILABLE version: load, batch, warm up."""

import logging
import os
from pathlib import Path

from isthmus.serving import batching, warmup
from isthmus.serving.batching import BatchedModel, BatchingParameters
from isthmus.serving.config import ServingConfig
from isthmus.serving.errors import RequestError, ServingError
from isthmus.serving.savedmodel import LoadedModel, SavedModel, SessionOptions
from isthmus.serving.status import Code

__all__ = ["Loader"]

logger = logging.getLogger(__name__)


class Loader:
    """Loads versions as the configuration says."""

    def __init__(self, config: ServingConfig, parameters: BatchingParameters | None) -> None:
        self._config = config
        self._parameters = parameters
        threads = config.tensorflow_session_parallelism
        self._options = SessionOptions(
            tags=tuple(config.saved_model_tags.split(",")),
            intra_op_threads=config.tensorflow_intra_op_parallelism or threads,
            inter_op_threads=config.tensorflow_inter_op_parallelism or threads,
            gpu_memory_fraction=config.per_process_gpu_memory_fraction,
        )

    def __call__(self, name: str, version: int, path: Path) -> LoadedModel:
        """Load one version and replay its warm-up.

        Raises:
            RequestError: the model cannot be loaded, or a warm-up request fails.
        """
        parameters = self._parameters_of(path)
        model: LoadedModel = SavedModel(path, self._options)
        if parameters is not None:
            model = BatchedModel(model, parameters)
        if self._config.enable_model_warmup:
            try:
                num_records = warmup.replay(
                    model, num_iterations=max(self._config.num_request_iterations_for_warmup, 1)
                )
            except BaseException:
                model.close()
                raise
            logger.debug("%s version %d: %d warm-up records", name, version, num_records)
        return model

    def _parameters_of(self, path: Path) -> BatchingParameters | None:
        own = path / batching.PER_MODEL_FILE
        if (
            self._parameters is None
            or not self._config.enable_per_model_batching_parameters
            or not own.is_file()
        ):
            return self._parameters
        try:
            return batching.read_parameters(own, num_cpus=os.cpu_count() or 1)
        except ServingError as error:
            raise RequestError(Code.INVALID_ARGUMENT, str(error)) from error
