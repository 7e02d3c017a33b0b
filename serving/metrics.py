"""TensorFlow Serving's Prometheus metrics, under its names (`:tensorflow:serving:…`), buckets and text form.

What is counted when follows tensorflow_serving/servables/tensorflow/util.cc and its callers: every finished
request in request_count, only the good ones in request_latency; the form follows util/prometheus_exporter.cc.
Times are in µs.
"""

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["CONTENT_TYPE", "DEFAULT_PATH", "Metrics"]

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = b"text/plain"

# monitoring::Buckets::Exponential(10, 1.8, 33): ten microseconds to twenty minutes.
_LIMITS_US = tuple(10 * 1.8**power for power in range(33))
_LIMITS_ROWS = tuple(float(2**power) for power in range(14))
# Requests for models that do not exist carry whatever name the client made up; their number is bounded.
_MAX_NUM_CELLS = 1000
_OTHER = "(other)"

Labels = tuple[str, ...]


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_LIMITS_US) + 1))
    total_us: float = 0.0


class Metrics:
    """Counters and histograms of one server; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, int]] = {name: {} for name in _COUNTERS}
        self._gauges: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {name: {} for name in _HISTOGRAMS}

    def request(self, *, model: str, api: str, entrypoint: str, status: str, duration_us: float) -> None:
        """One finished request.

        Args:
            model: the name that was asked for.
            api: Predict, Classify, … over gRPC; predict, classify, … or "" over REST.
            entrypoint: GRPC or REST.
            status: name of the canonical code.
            duration_us: time in the server.
        """
        with self._lock:
            self._count(_REQUEST_COUNT, (model, status))
            if status == "OK":
                self._observe(_REQUEST_LATENCY, (model, api, entrypoint), duration_us)

    def runtime(self, *, model: str, api: str, duration_us: float) -> None:
        """One computation of a graph."""
        with self._lock:
            self._observe(_RUNTIME_LATENCY, (model, api, "TF1"), duration_us)

    def signature(self, *, model: str, signature: str, api: str, entrypoint: str, duration_us: float) -> None:
        """One computation of a signature that the model has (names that clients make up are no labels).

        Args:
            model: its name.
            signature: the signature's name; serving_default when the client named none.
            api: as in `request`.
            entrypoint: GRPC or REST.
            duration_us: from the lookup of the model to its outputs.
        """
        with self._lock:
            self._observe(_SIGNATURE_LATENCY, (model, signature, api, entrypoint), duration_us)

    def load_attempt(self, *, model_path: str, succeeded: bool, duration_us: float) -> None:
        """One attempt to load a version."""
        with self._lock:
            self._count(_LOAD_ATTEMPTS, (model_path, "success" if succeeded else "fail"))
            if succeeded:
                self._count(_LOAD_LATENCY, (model_path,), round(duration_us))

    def warmup(self, *, model_path: str, status: str, duration_us: float) -> None:
        """One replay of warm-up records."""
        with self._lock:
            self._observe(_WARMUP_LATENCY, (model_path, status), duration_us)

    def batching_input(self, *, model_path: str, num_rows: int) -> None:
        """One request that enters a batching queue."""
        with self._lock:
            self._observe(_INPUT_BATCH_SIZE, (model_path,), num_rows)

    def batch(self, *, model_path: str, num_rows: int) -> None:
        """One batch that is computed, padding included."""
        with self._lock:
            self._observe(_PROCESSED_BATCH_SIZE, (model_path,), num_rows)

    def batching_delay(self, *, model_path: str, duration_us: float) -> None:
        """How long one request took from the queue's entrance to its answer."""
        with self._lock:
            self._observe(_BATCH_DELAY, (model_path,), duration_us)

    def batching_waiting(self, *, model_path: str, change: int) -> None:
        """Requests that are in a queue or in a batch: one more (1), or one less (-1)."""
        with self._lock:
            cells = self._gauges.setdefault(_WAITING, {})
            cells[(model_path,)] = cells.get((model_path,), 0) + change

    def latencies(self) -> list[dict[str, object]]:
        """Request latencies as numbers: model, API, entrypoint, and the requests per bucket of limits_us."""
        with self._lock:
            return [
                {
                    "model": labels[0],
                    "api": labels[1],
                    "entrypoint": labels[2],
                    "counts": list(histogram.counts),
                    "limits_us": list(_LIMITS_US),
                }
                for labels, histogram in sorted(self._histograms[_REQUEST_LATENCY].items())
            ]

    def page(self) -> str:
        """Everything, in Prometheus' text format."""
        lines: list[str] = []
        with self._lock:
            for name, counter_cells in self._counters.items():
                lines.append(f"# TYPE {name} counter")
                for labels, count in sorted(counter_cells.items()):
                    lines.append(f"{name}{{{_labelled(_COUNTERS[name], labels)}}} {count}")
            for name, gauge_cells in self._gauges.items():
                lines.append(f"# TYPE {name} gauge")
                for labels, value in sorted(gauge_cells.items()):
                    lines.append(f"{name}{{{_labelled(_GAUGE_LABELS, labels)}}} {value:g}")
            for name, cells in self._histograms.items():
                lines.append(f"# TYPE {name} histogram")
                for labels, histogram in sorted(cells.items()):
                    lines += _histogram_lines(name, _labelled(_HISTOGRAMS[name], labels), histogram)
        return "\n".join(lines) + "\n"

    def _count(self, name: str, labels: Labels, amount: int = 1) -> None:
        cells, labels = self._counters[name], _utf8(labels)
        key = labels if labels in cells or len(cells) < _MAX_NUM_CELLS else (_OTHER, *labels[1:])
        cells[key] = cells.get(key, 0) + amount

    def _observe(self, name: str, labels: Labels, value_us: float) -> None:
        histogram = self._histograms[name].setdefault(_utf8(labels), _Histogram())
        histogram.counts[bisect.bisect_right(_limits(name), value_us)] += 1
        histogram.total_us += value_us


_REQUEST_COUNT = ":tensorflow:serving:request_count"
_LOAD_ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
_LOAD_LATENCY = ":tensorflow:cc:saved_model:load_latency"
_REQUEST_LATENCY = ":tensorflow:serving:request_latency"
_RUNTIME_LATENCY = ":tensorflow:serving:runtime_latency"
_WARMUP_LATENCY = ":tensorflow:serving:model_warmup_latency"
# Our own: the original's histograms do not tell a model's signatures apart.
_SIGNATURE_LATENCY = ":isthmus:serving:signature_latency"

# tensorflow/core/kernels/batching_util reports these; the gauge is our own.
_INPUT_BATCH_SIZE = ":tensorflow:serving:batching:input_batch_size"
_PROCESSED_BATCH_SIZE = ":tensorflow:serving:batching:processed_batch_size"
_BATCH_DELAY = ":tensorflow:serving:batching:batch_delay_us"
_WAITING = ":isthmus:serving:batching:requests_waiting"
_GAUGE_LABELS = ("model_path",)

_COUNTERS: dict[str, Sequence[str]] = {
    _LOAD_ATTEMPTS: ("model_path", "status"),
    _LOAD_LATENCY: ("model_path",),
    _REQUEST_COUNT: ("model_name", "status"),
}
_HISTOGRAMS: dict[str, Sequence[str]] = {
    _WARMUP_LATENCY: ("model_path", "status"),
    _REQUEST_LATENCY: ("model_name", "API", "entrypoint"),
    _RUNTIME_LATENCY: ("model_name", "API", "runtime"),
    _SIGNATURE_LATENCY: ("model_name", "signature_name", "API", "entrypoint"),
    _INPUT_BATCH_SIZE: ("model_path",),
    _PROCESSED_BATCH_SIZE: ("model_path",),
    _BATCH_DELAY: ("model_path",),
}


def _limits(name: str) -> Sequence[float]:
    return _LIMITS_ROWS if name in (_INPUT_BATCH_SIZE, _PROCESSED_BATCH_SIZE) else _LIMITS_US


def _labelled(names: Sequence[str], values: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _utf8(labels: Labels) -> Labels:
    """The labels as a page can hold them: bytes that are no UTF-8 (a client's `%ff`, read with surrogateescape) are
    question marks."""
    return tuple(label.encode("utf-8", "replace").decode() for label in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _histogram_lines(name: str, labels: str, histogram: _Histogram) -> list[str]:
    lines, cumulative = [], 0
    limits = [f"{limit:g}" for limit in _limits(name)] + ["+Inf"]
    for limit, count in zip(limits, histogram.counts, strict=False):
        cumulative += count
        lines.append(f'{name}_bucket{{{labels},le="{limit}"}} {cumulative}')
    lines.append(f"{name}_sum{{{labels}}} {histogram.total_us:g}")
    lines.append(f"{name}_count{{{labels}}} {cumulative}")
    return lines
