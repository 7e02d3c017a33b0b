"""What an export may be told. Parsed from a recipe's `export:` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Rung = Literal["onnx2tf", "direct"]
Precision = Literal["fp32", "bf16", "int8"]
Format = Literal["saved_model", "tflite"]
Stage = Literal[
    "onnxruntime",
    "saved_model",
    "preprocessing",
    "end_to_end",
    "server_grpc",
    "server_rest",
    "precision",
    "litert",
]

#: The stages that every bundle has a verdict for, in the order they are measured. See `ExportConfig.stages`.
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

    logit_error: float | None = 1e-3
    """Largest max |Δlogit| ÷ (standard deviation of torch's logits between images, averaged over classes).
    None, in reduced precision only: the error is measured and recorded, and agreement decides."""

    top1_agreement: float = 1.0
    """Smallest share of images, ties left out, whose best class is torch's."""

    tie_margin: float = 1e-3
    """Two best classes closer than this, in the unit of `logit_error`, are a tie: neither is right."""

    differing_pixels: int = 0
    """Largest number of uint8 values, over all images, by which the graph may differ from timm."""

    def __post_init__(self) -> None:
        """Refuse limits that no comparison can mean."""
        limited = self.logit_error is None or self.logit_error > 0
        if not limited or not self.tie_margin >= 0 or self.differing_pixels < 0:
            raise ValueError(
                "gates: logit_error must be > 0, tie_margin and differing_pixels ≥ 0; got "
                f"{self.logit_error}, {self.tie_margin}, {self.differing_pixels}"
            )
        if not 0 < self.top1_agreement <= 1:
            raise ValueError(f"gates: top1_agreement is a share in (0, 1], got {self.top1_agreement}")


@dataclass(kw_only=True)
class ReducedGateConfig:
    """What a model in reduced precision (bf16, int8) is held to instead of `GateConfig.logit_error`.

    Eight bits of mantissa cannot give torch's logits; what counts is that the answers stay.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    max_metric_drop: float = 0.005
    """How much lower than torch's accuracy on the evaluation images it may be; 0.005 = half a point."""

    top1_agreement: float = 0.99
    """Smallest share of the evaluation images, ties included, whose best class is torch's in fp32."""

    tie_margin: float = 0.05
    """Of the few reference images, those whose two best classes are closer than this (in the unit of
    `GateConfig.logit_error`) decide nothing where the served answers are compared. `evaluation_images` have
    no such exception."""

    evaluation_images: int = 512
    """Images that metric and agreement are measured on: at most, of the reference split."""

    calibration_images: int = 128
    """Images, of the split `val` or else `train`, that int8 takes its ranges from: at most."""

    def __post_init__(self) -> None:
        """Refuse limits that no comparison can mean."""
        if not 0 <= self.max_metric_drop < 1 or not 0 < self.top1_agreement <= 1 or not self.tie_margin >= 0:
            raise ValueError(
                "export.reduced: max_metric_drop is a share in [0, 1), top1_agreement one in (0, 1], "
                f"tie_margin ≥ 0; got {self.max_metric_drop}, {self.top1_agreement}, {self.tie_margin}"
            )
        if self.evaluation_images < 16 or self.calibration_images < 16:
            raise ValueError(
                "export.reduced: at least 16 evaluation_images and calibration_images, "
                f"got {self.evaluation_images} and {self.calibration_images}"
            )


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

    rungs: tuple[Rung, ...] = ("direct", "onnx2tf")
    """Ways to lower ONNX to TensorFlow, tried in this order; the first that passes every gate wins.

    `direct` first: of three convolutional nets its graphs ran in 0.6 (mobilenetv3_large_100), 0.95 (efficientnet_b0)
    and 0.97 (resnet50) of the time of onnx2tf's, and it lowers in a fraction of the time and memory. For a model
    with attention it is first in any case (ladder.in_order says why)."""

    reference_images: int = 64
    """Real images every stage is measured on: at least 16, and all there are in a split of fewer."""

    reference_split: str = "test"
    """The split of the data root that they come from."""

    exporter: Literal["torchscript", "dynamo"] = "torchscript"
    """How torch writes ONNX. The TorchScript exporter's graphs cross to TensorFlow far more often."""

    opset: int = 17
    """ONNX operator set version."""

    precision: Precision = "fp32"
    """Arithmetic of the model. bf16 and int8 are held to `reduced`; docs/precision.md says what each is."""

    reduced: ReducedGateConfig = field(default_factory=ReducedGateConfig)
    """Limits of bf16 and int8."""

    formats: tuple[Format, ...] = ("saved_model",)
    """What the bundle holds: always the SavedModel, and beside it `tflite`, model.tflite for LiteRT."""

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
        if "saved_model" not in self.formats or len(set(self.formats)) != len(self.formats):
            raise ValueError(
                f"export.formats: saved_model, and beside it tflite or nothing; got {list(self.formats)}"
            )
        if self.gates.logit_error is None:
            raise ValueError("export.gates.logit_error: a number > 0, got None; see export.reduced")
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
                "reduced": ReducedGateConfig(**value["reduced"]),
                "formats": tuple(value["formats"]),
                "rungs": tuple(value["rungs"]),
                "warmup_batch_sizes": tuple(value["warmup_batch_sizes"]),
                "overrides": tuple(Override(**override) for override in value["overrides"]),
            }
        )

    @property
    def is_reduced(self) -> bool:
        """Whether the model computes in less than float32."""
        return self.precision != "fp32"

    @property
    def has_litert(self) -> bool:
        """Whether a model.tflite lies beside the SavedModel."""
        return "tflite" in self.formats

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that this export has a verdict for."""
        extra: tuple[Stage, ...] = ()
        if self.is_reduced:
            extra += ("precision",)
        if self.has_litert:
            extra += ("litert",)
        return STAGES + extra

    @property
    def served_gates(self) -> GateConfig:
        """The limits of every stage from the SavedModel on; fp32's own, or what follows from `reduced`."""
        if not self.is_reduced:
            return self.gates
        return GateConfig(
            logit_error=None,
            top1_agreement=self.reduced.top1_agreement,
            tie_margin=max(self.reduced.tie_margin, self.gates.tie_margin),
            differing_pixels=self.gates.differing_pixels,
        )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes at which parity is measured: 1, 3 and the largest that is warmed up."""
        return tuple(sorted({1, 3, max(self.warmup_batch_sizes)}))
