"""Beam's own multi-processing runner, but for how a worker process begins: as a fork (see `fork_server`).

    --runner=isthmus.tfx_pipeline.forking_runner.ForkingRunner --direct_running_mode=multi_processing

A worker that dies, for whatever reason, fails the run: what it had done is lost, and nothing says that it was done.
"""

from __future__ import annotations

import threading

from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner, worker_handlers
from google.protobuf import json_format, text_format

from isthmus.tfx_pipeline import fork_server


class ForkingRunner(fn_runner.FnApiRunner):
    """FnApiRunner, whose worker processes are forks of one that has imported Beam."""

    def __init__(self) -> None:
        """Have Beam ask us for its workers, where it would start `python -m …sdk_worker_main`."""
        super().__init__()
        worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(_ForkedWorker)


class _ForkedWorker(worker_handlers.GrpcWorkerHandler):
    """One worker process, seen from the runner."""

    def __init__(
        self,
        command: bytes,  # noqa: ARG002 - what Beam would start
        state: worker_handlers.StateServicer,
        provision_info: worker_handlers.ExtendedProvisionInfo,
        grpc_server: worker_handlers.GrpcServer,
    ) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._stopped = threading.Event()
        self._options = json_format.MessageToJson(provision_info.provision_info.pipeline_options)

    def start_worker(self) -> None:
        self._process = fork_server.fork_worker(
            {
                "WORKER_ID": self.worker_id,
                "PIPELINE_OPTIONS": self._options,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                    self.control_api_service_descriptor()
                ),
                "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                    self.logging_api_service_descriptor()
                ),
            }
        )
        self._watch = threading.Thread(target=self._wait, name=f"wait_for_{self.worker_id}", daemon=True)
        self._watch.start()

    def _wait(self) -> None:
        self._process.join()
        if not (code := self._process.exitcode):
            return
        # Beam would wait without end for one that died before it had asked for work, whenever it is given some.
        died = beam_fn_api_pb2.InstructionResponse(error=f"a worker process of Beam ended with {code}")
        while not self._stopped.wait(timeout=1):
            for request in list(self.control_conn._futures_by_id.values()):
                request.set(died)

    def stop_worker(self) -> None:
        self._stopped.set()
        self._watch.join()
