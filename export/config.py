"""What an export may be told. Parsed from a recipe's `export:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Rung = Literal["onnx2tf", "direct"]
Stage = Literal["onnxruntime", "saved_model", "preprocessing", "end_to_end", "server_grpc", "server_rest"]

#: Every stage of the parity ladder, in the order it is measured. A bundle has a verdict for each of them.
STAGES: tuple[Stage, ...] = (
    "onnxruntime",
    "saved_model",
    "preprocessing",
    "end_to_end",
    "server_grpc",
    "server_rest",
)


@dataclass(kw_only=True)
class GateConfig:
    """How far a stage may be from torch. There is no switch that turns a gate off; see `Override`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    logit_error: float = 1e-3
    """Largest max |Δlogit| ÷ (standard deviation of torch's logits between images, averaged over classes)."""

    top1_agreement: float = 1.0
    """Smallest share of images, ties left out, whose best class is torch's."""

    tie_margin: float = 1e-3
    """Two best classes closer than this, in the unit of `logit_error`, are a tie: neither is right."""

    differing_pixels: int = 0
    """Largest number of uint8 values, over all images, by which the graph may differ from timm."""

    def __post_init__(self) -> None:
        """Refuse limits that no comparison can mean."""
        if not self.logit_error > 0 or not self.tie_margin >= 0 or self.differing_pixels < 0:
            raise ValueError(
                "gates: logit_error must be > 0, tie_margin and differing_pixels ≥ 0; got "
                f"{self.logit_error}, {self.tie_margin}, {self.differing_pixels}"
            )
        if not 0 < self.top1_agreement <= 1:
            raise ValueError(f"gates: top1_agreement is a share in (0, 1], got {self.top1_agreement}")


@dataclass(kw_only=True)
class Override:
    """Someone's decision to publish although a gate failed.

    It is written into the manifest, and the registry refuses to make such a version champion.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    gate: Stage
    """The stage whose failure is accepted."""

    who: str
    """Who decided."""

    why: str
    """The reason, for whoever finds it later."""

    def __post_init__(self) -> None:
        """An override without a name or a reason is a silently skipped gate."""
        if not self.who.strip() or not self.why.strip():
            raise ValueError(f"override of {self.gate}: say who decided and why")


@dataclass(kw_only=True)
class ExportConfig:
    """The `export:` section of a recipe."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    gates: GateConfig = field(default_factory=GateConfig)
    """The limits of every stage."""

    rungs: tuple[Rung, ...] = ("onnx2tf", "direct")
    """Ways to lower ONNX to TensorFlow, tried in this order; the first that passes every gate wins."""

    reference_images: int = 64
    """Real images every stage is measured on: at least 16, and all there are in a split of fewer."""

    reference_split: str = "test"
    """The split of the data root that they come from."""

    exporter: Literal["torchscript", "dynamo"] = "torchscript"
    """How torch writes ONNX. The TorchScript exporter's graphs cross to TensorFlow far more often."""

    opset: int = 17
    """ONNX operator set version."""

    precision: Literal["fp32"] = "fp32"
    """Arithmetic of the SavedModel."""

    warmup_batch_sizes: tuple[int, ...] = (1, 8)
    """Batch sizes that a server runs once before it answers; parity is measured at 1, 3 and the largest."""

    stage_timeout_s: float = 1800.0
    """A process of the export that takes longer is stopped, and the export fails."""

    overrides: tuple[Override, ...] = ()
    """Failures accepted in advance, each with a name and a reason."""

    def __post_init__(self) -> None:
        """Refuse what could only fail much later."""
        if not self.rungs or len(set(self.rungs)) != len(self.rungs):
            raise ValueError(f"export.rungs: name each rung once, at least one; got {list(self.rungs)}")
        if self.reference_images < 16:
            raise ValueError(f"export.reference_images: at least 16, got {self.reference_images}")
        if not self.warmup_batch_sizes or min(self.warmup_batch_sizes) < 1:
            raise ValueError(
                f"export.warmup_batch_sizes: positive sizes, got {list(self.warmup_batch_sizes)}"
            )
        if not 16 <= self.opset <= 20:
            raise ValueError(f"export.opset: 16 to 20 cross the bridge, got {self.opset}")
        if self.stage_timeout_s <= 0:
            raise ValueError(f"export.stage_timeout_s: seconds > 0, got {self.stage_timeout_s}")

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ExportConfig:
        """The inverse of `dataclasses.asdict`, after a journey through JSON."""
        return cls(
            **{
                **value,
                "gates": GateConfig(**value["gates"]),
                "rungs": tuple(value["rungs"]),
                "warmup_batch_sizes": tuple(value["warmup_batch_sizes"]),
                "overrides": tuple(Override(**override) for override in value["overrides"]),
            }
        )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes at which parity is measured: 1, 3 and the largest that is warmed up."""
        return tuple(sorted({1, 3, max(self.warmup_batch_sizes)}))
