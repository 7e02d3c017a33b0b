"""What the pipeline may be told. Parsed from a recipe's `pipeline:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from isthmus.tfx_pipeline.cluster_config import ClusterConfig
from isthmus.tfx_pipeline.data_config import DataGate, InputConfig, share


@dataclass(kw_only=True)
class EvaluationGate:
    """How good a model must be on the evaluation split."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    min_accuracy: float = 0.5
    """Smallest share of right answers over the whole split."""

    max_accuracy_drop: float = 0.005
    """How much lower than the champion's accuracy, measured on the same images, it may be."""

    min_class_accuracy: float | None = None
    """Smallest share of right answers within every class. None: shown, and decides nothing."""

    min_size_accuracy: float | None = None
    """The same within every bucket of image sizes (see `size_edges`)."""

    min_brightness_accuracy: float | None = None
    """The same within every bucket of brightnesses (see `brightness_edges`)."""

    max_slice_accuracy_drop: float | None = None
    """How much lower than the champion's the accuracy within any slice may be. None: shown, and decides nothing."""

    min_slice_images: int = 30
    """A slice of fewer images is not judged; where a kind of slices has a threshold and none is large enough, the
    model is refused."""

    confidence: float = 0.95
    """Of the intervals. A slice refuses a model only when its whole interval is on the wrong side of the limit."""

    size_edges: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Where the buckets of the shorter side begin, in pixels."""

    brightness_edges: tuple[int, ...] = (64, 128, 192)
    """Where the buckets of `image/brightness` begin: mean luma, 0 to 255."""

    def __post_init__(self) -> None:
        """Refuse thresholds that no accuracy can mean."""
        for name in (
            "min_accuracy",
            "max_accuracy_drop",
            "min_class_accuracy",
            "min_size_accuracy",
            "min_brightness_accuracy",
            "max_slice_accuracy_drop",
        ):
            share(f"evaluation.{name}", getattr(self, name))
        if self.min_slice_images < 1:
            raise ValueError(f"pipeline.evaluation.min_slice_images must be ≥ 1, got {self.min_slice_images}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"pipeline.evaluation.confidence is a share in (0, 1), got {self.confidence}")
        for name in ("size_edges", "brightness_edges"):
            edges = getattr(self, name)
            if not edges or edges[0] < 1 or list(edges) != sorted(set(edges)):
                raise ValueError(f"pipeline.evaluation.{name} are growing numbers ≥ 1, got {list(edges)}")


@dataclass(kw_only=True)
class ParityGate:
    """How far the SavedModel, in the pipeline's own runtime, may be from torch's recorded answers."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    logit_error: float = 1e-3
    """Largest max |Δlogit| ÷ (standard deviation of torch's logits between images, averaged over classes)."""

    top1_agreement: float = 1.0
    """Smallest share of images, ties left out, whose best class is torch's."""

    min_evaluation_images: int = 16
    """So many of the images that torch answered for at export must be in the evaluation split, or all where there
    were fewer. 0 accepts a model that was only compared on images of its own."""

    def __post_init__(self) -> None:
        """Refuse limits that no comparison can mean."""
        if not self.logit_error > 0:
            raise ValueError(f"pipeline.parity.logit_error must be > 0, got {self.logit_error}")
        if not 0 < self.top1_agreement <= 1:
            raise ValueError(
                f"pipeline.parity.top1_agreement is a share in (0, 1], got {self.top1_agreement}"
            )
        if self.min_evaluation_images < 0:
            raise ValueError(
                f"pipeline.parity.min_evaluation_images must be ≥ 0, got {self.min_evaluation_images}"
            )


@dataclass(kw_only=True)
class ServerGate:
    """What the real server is asked before a model may be pushed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    num_images: int = 8
    """Reference images sent to each signature over gRPC and over REST."""

    deadline_s: float = 120.0
    """The server must have loaded the model within this time, and answer each request within it."""

    num_requests: int = 100
    """Requests of one image each that the latency is measured with, after the first."""

    first_request_ms: float | None = None
    """Longest time of the first request after the load. None: measured and recorded, and decides nothing."""

    latency_p99_ms: float | None = None
    """Largest 99th percentile of the latency of those after it. None: as above."""

    memory_mb: float | None = None
    """Largest resident memory of the server, in 10⁶ bytes, the load and all questions included. None: as above."""

    binary: str | None = None
    """A tensorflow_model_server to ask in place of the embedded server."""

    image: str | None = None
    """A container image whose entry point takes tensorflow_model_server's flags, run with Docker or Podman."""

    def __post_init__(self) -> None:
        """Refuse a gate that would ask nothing."""
        if self.num_images < 1:
            raise ValueError(f"pipeline.server.num_images must be ≥ 1, got {self.num_images}")
        if not self.deadline_s > 0:
            raise ValueError(f"pipeline.server.deadline_s must be > 0 seconds, got {self.deadline_s}")
        if self.num_requests < 1:
            raise ValueError(f"pipeline.server.num_requests must be ≥ 1, got {self.num_requests}")
        for name in ("first_request_ms", "latency_p99_ms", "memory_mb"):
            budget = getattr(self, name)
            if budget is not None and not budget > 0:
                raise ValueError(f"pipeline.server.{name} must be > 0, got {budget}")
        if self.binary and self.image:
            raise ValueError("pipeline.server.binary and pipeline.server.image exclude each other")


@dataclass(kw_only=True)
class PipelineConfig:
    """The `pipeline:` section of a recipe."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    evaluation_split: Literal["val", "test"] = "test"
    """The split that the Evaluator measures on."""

    evaluation: EvaluationGate = field(default_factory=EvaluationGate)
    """Accuracy thresholds."""

    parity: ParityGate = field(default_factory=ParityGate)
    """Limits of the parity measurement."""

    server: ServerGate = field(default_factory=ServerGate)
    """The server check."""

    push_to: str | None = None
    """Folder, or place in an object store (`s3://…`, `gs://…`), that servers poll: versions are pushed to
    `<push_to>/<name>/<version>/`. None: `serving` in the home folder."""

    input: InputConfig = field(default_factory=InputConfig)
    """Where the images come from."""

    data: DataGate = field(default_factory=DataGate)
    """What the data must be like, besides what the schema says."""

    on_corrupt: Literal["fail", "quarantine"] = "fail"
    """An image that cannot be decoded is left out and listed: `fail` refuses to push because of it."""

    max_corrupt_share: float = 0.01
    """With `quarantine`: a larger share of unreadable images than this refuses to push all the same."""

    schema: Path | None = None
    """A curated schema to validate the data against, which `isthmus pipeline schema` writes; in a recipe, relative to
    the recipe's folder. None: inferred from `train`."""

    beam_workers: int = 1
    """Processes for Beam's work. 1 runs it inside the pipeline's own process, which is faster below some ten
    thousand images."""

    beam_args: tuple[str, ...] = ()
    """Further Beam options. With a `--runner` among them, they are all that Beam is told."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Resources, environment and secrets of the tasks under the runners kubeflow and vertex."""

    def __post_init__(self) -> None:
        """Refuse what could only fail much later."""
        share("max_corrupt_share", self.max_corrupt_share)
        if self.beam_workers < 1:
            raise ValueError(f"pipeline.beam_workers must be ≥ 1, got {self.beam_workers}")
