"""What a running server costs: the first request after the load, the latency of the ones after it, the memory; and
the warm-up that keeps the first from being the dearest."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isthmus.serving import warmup
from isthmus.serving.errors import RequestError

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
        if gate.first_request_ms is not None and self.first_ms > gate.first_request_ms:
            reasons.append(
                f"the first request after the load took {self.first_ms:.1f} ms (median of those after it "
                f"{self.p50_ms:.1f} ms), at most {gate.first_request_ms:g} ms is allowed"
            )
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


DEFAULT_SIGNATURE = "serving_default"

_REPLAYED = re.compile(
    r'^:tensorflow:serving:model_warmup_latency_count\{[^}]*status="OK"[^}]*\} [1-9]', re.MULTILINE
)


def warmup_refusal(saved_model: Path) -> str | None:
    """Why a server could not warm the model's default signature up; None: it has records to replay.

    A server takes a model without any, and lets the first client wait while the graph is planned.
    """
    try:
        logs = list(warmup.records(saved_model / warmup.WARMUP_FILE))
    except RequestError as error:
        if not (saved_model / warmup.WARMUP_FILE).is_file():
            problem = "is not there"
        else:
            problem = f"cannot be read: {' '.join(str(error).split())[:300]}"
    else:
        if any(
            log.HasField("predict_log")
            and log.predict_log.request.model_spec.signature_name in ("", DEFAULT_SIGNATURE)
            for log in logs
        ):
            return None
        problem = f"has no record of it ({len(logs)} of others)" if logs else "is empty"
    return (
        f"the model brings no warm-up for {DEFAULT_SIGNATURE}: {warmup.WARMUP_FILE} {problem}; "
        "`isthmus export` writes it"
    )


def metrics_page(port: int, *, deadline_s: float) -> str:
    """The metrics on the embedded server's admin port, in Prometheus' text form. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=deadline_s) as answer:
        page: bytes = answer.read()
        return page.decode()


def replayed(page: str) -> bool:
    """Whether a server's metrics, under TensorFlow Serving's names, say that a warm-up ran to its end."""
    return _REPLAYED.search(page) is not None


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
