"""How busy the machine is while a model is trained: CPU, memory, disk, network and GPUs, as MLflow samples them.

MLflow's own monitor ends for good when its server does not answer once; here what it samples waits in a backlog.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from isthmus.lineage import tracking
from isthmus.training.backlog import Backlog, impatient

log = logging.getLogger(__name__)


@contextmanager
def recorded(run_id: str, *, tracking_uri: str) -> Iterator[None]:
    """Record `system/*` metrics of this machine on a run while the block runs, and once at its end.

    The step counts the samples. Where nvidia-ml-py finds no GPU there are none of a GPU. What waits for a server
    that is away is written when it answers again, at the latest at the end, which waits as `Backlog.settled` does.

    MLflow's own settings hold: MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns it off,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (seconds, 10) and MLFLOW_SYSTEM_METRICS_NODE_ID (a part of the names).
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as SWITCH

    if SWITCH.is_set() and not SWITCH.get():
        yield
        return
    sampler = _Sampler(run_id, Backlog(tracking_uri=tracking_uri))
    thread = threading.Thread(target=sampler.run, name="system metrics", daemon=True)
    # For the threads' whole time: what one of them sets of the environment the other would take away.
    with impatient():
        thread.start()
        try:
            yield
        finally:
            sampler.over.set()
            thread.join()
    sampler.finish()


class _Sampler:
    def __init__(self, run_id: str, backlog: Backlog) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.monitor = SystemMetricsMonitor(run_id)
        self.run_id, self.backlog = run_id, backlog
        self.over = threading.Event()
        self.prefix = "system/" + (f"{self.monitor.node_id}/" if self.monitor.node_id else "")
        self.step = 0

    def run(self) -> None:
        """A sample each interval, until `over`."""
        try:
            while not self.over.wait(self.monitor.sampling_interval):
                self.backlog.add(self._sample())
        # Of no consequence to the training.
        except Exception:
            log.warning("system metrics are not recorded any more", exc_info=True)

    def finish(self) -> None:
        """The last sample, and all that waits."""
        self.backlog.settled(self._sample())

    def _sample(self) -> functools.partial[None]:
        self.monitor.collect_metrics()
        metrics = {self.prefix + name: value for name, value in self.monitor.aggregate_metrics().items()}
        for each in self.monitor.monitors:
            each.clear_metrics()
        self.step += 1
        return functools.partial(
            tracking.log_metrics,
            self.run_id,
            metrics,
            step=self.step - 1,
            timestamp_ms=int(time.time() * 1000),
        )
