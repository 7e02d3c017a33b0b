"""What a running server costs: the first request after the load, the latency of the ones after it, the memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from isthmus.tfx_pipeline.config import ServerGate


@dataclass(kw_only=True, frozen=True)
class Costs:
    """Measured on one server, one request at a time, one image each, over gRPC."""

    first_ms: float
    """Latency of the very first request. Where the warm-up did its work it is no outlier."""

    p50_ms: float
    """Median latency of the requests after it."""

    p99_ms: float
    """99th percentile; of fewer than 100 requests the largest."""

    num_requests: int
    """Requests after the first."""

    memory_mb: float
    """The server's largest resident memory so far, in 10⁶ bytes."""

    def summary(self) -> str:
        """A few words."""
        return (
            f"p99 {self.p99_ms:.1f} ms (first {self.first_ms:.1f}, median {self.p50_ms:.1f}), "
            f"{self.memory_mb:.0f} MB"
        )

    def refusals(self, gate: ServerGate) -> list[str]:
        """The budgets that are exceeded, one sentence each."""
        reasons = []
        if gate.latency_p99_ms is not None and self.p99_ms > gate.latency_p99_ms:
            reasons.append(
                f"latency of one image over gRPC is {self.p99_ms:.1f} ms at p99 (n = {self.num_requests} requests, "
                f"median {self.p50_ms:.1f} ms), at most {gate.latency_p99_ms:g} ms is allowed"
            )
        if gate.memory_mb is not None and self.memory_mb > gate.memory_mb:
            reasons.append(
                f"the server's memory reached {self.memory_mb:.0f} MB, at most {gate.memory_mb:g} MB is allowed"
            )
        return reasons


def latencies_ms(ask: Callable[[], object], count: int) -> list[float]:
    """How long each of `count` calls took, one after the other."""
    measured = []
    for _ in range(count):
        started = time.perf_counter()
        ask()
        measured.append((time.perf_counter() - started) * 1e3)
    return measured


def costs(first_ms: float, after_ms: list[float], memory_mb: float) -> Costs:
    """Put the measurements together."""
    return Costs(
        first_ms=first_ms,
        p50_ms=float(np.percentile(after_ms, 50)),
        p99_ms=float(np.percentile(after_ms, 99, method="higher")),
        num_requests=len(after_ms),
        memory_mb=memory_mb,
    )
