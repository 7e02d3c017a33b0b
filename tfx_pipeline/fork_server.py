"""One process that has imported Beam, of which Beam's worker processes on this machine are forks.

A new Python spends 2 to 3 seconds of CPU on importing Beam before it does any work: each worker, for each component.
The process (multiprocessing's forkserver) imports once, beside what its starter does meanwhile; a fork takes 15 ms. It
opens no channel of gRPC and does no work, so that there is no thread of ours that a fork would lose; it ends with its
starter. Standard library only, until a worker runs.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess

_PRELOADED = ["apache_beam.runners.worker.sdk_worker_main", "isthmus.tfx_pipeline.ingest"]


def start() -> None:
    """Start it, unless it runs; returns at once."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def fork_worker(environment: dict[str, str]) -> BaseProcess:
    """A worker of Beam, started.

    Args:
        environment: What Beam tells its worker (see `sdk_worker_main`), besides this process' own variables.
    """
    start()
    process = multiprocessing.get_context("forkserver").Process(
        target=_work, args=({**os.environ, **environment},), name=environment["WORKER_ID"], daemon=True
    )
    process.start()
    return process


def _work(environment: dict[str, str]) -> None:
    from apache_beam.runners.worker import sdk_worker_main

    from isthmus.tfx_pipeline.imports import torch_kept_out

    os.environ.clear()
    os.environ.update(environment)
    with torch_kept_out():
        sdk_worker_main.main([])
