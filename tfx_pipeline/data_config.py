"""What the pipeline may be told about its data: where images come from, and how far they may move."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

FORMATS = ("folder", "tfrecord", "csv", "parquet")


def share(name: str, value: float | None) -> None:
    """Refuse a value of `pipeline.<name>` that is no share; None is none at all."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"pipeline.{name} is a share between 0 and 1, got {value}")


@dataclass(kw_only=True)
class InputConfig:
    """Where the pipeline's images come from, when it is not the data set that training prepared."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    path: str | None = None
    """A folder of images, a manifest (`*.csv`, `*.parquet`) or TFRecord files (a folder or a pattern with `*`); local,
    `s3://` or `gs://`. May hold `{SPAN}` (or `{YYYY}`, `{MM}`, `{DD}`) and `{VERSION}`, as TFX's patterns do: the
    latest is taken. None: the data set that training prepared."""

    format: Literal["auto", "folder", "tfrecord", "csv", "parquet"] = "auto"
    """`auto` goes by the name: `.csv`, `.parquet`, `tfrecord` in the file's name, else a folder."""

    class_map: Path | None = None
    """timm's class map, where folders or labels are called otherwise than the model's: a text file with one name a
    line in the order of the model's outputs, or JSON (a list, or name to index)."""

    splits: Literal["auto", "own", "hash"] = "auto"
    """`own`: the source says which image is of which split (folders, file names or a column). `hash`: decided by each
    image's content with the rule that training splits an image folder by, so that no image ever moves. `auto`: own
    where the source has any."""

    val_fraction: float | None = None
    """Share of the contents that `hash` makes val. None: as `data.val_fraction` has it."""

    test_fraction: float | None = None
    """Share of the contents that `hash` makes test. None: as `data.test_fraction` has it."""

    split_seed: int | None = None
    """Of the hash. None: as `data.split_seed` has it."""

    span: int | None = None
    """Which span of the pattern. None: the latest."""

    version: int | None = None
    """Which version of the span. None: the latest."""

    def __post_init__(self) -> None:
        """Refuse fractions that leave nothing to train."""
        share("input.val_fraction", self.val_fraction)
        share("input.test_fraction", self.test_fraction)
        if (self.val_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError(
                "pipeline.input.val_fraction and test_fraction leave nothing for train: "
                f"{self.val_fraction} and {self.test_fraction}"
            )


@dataclass(kw_only=True)
class DistanceConfig:
    """How far two distributions of a feature may be from each other.

    A comparator in the schema wins. Where there are so few images that chance alone moves a distribution further than
    these limits, what chance does is allowed (see `distances.by_chance`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    l_infinity: float = 0.1
    """Of words (format, class): the largest difference of one value's share."""

    jensen_shannon: float = 0.2
    """Of numbers: the Jensen-Shannon divergence of their histograms, 0 (equal) to 1 (nothing in common)."""

    def __post_init__(self) -> None:
        """Refuse distances that no comparison can mean."""
        if not 0 < self.l_infinity <= 1 or not 0 < self.jensen_shannon <= 1:
            raise ValueError(
                "distances are in (0, 1], got "
                f"l_infinity {self.l_infinity} and jensen_shannon {self.jensen_shannon}"
            )


@dataclass(kw_only=True)
class DriftConfig(DistanceConfig):
    """Against the data of an earlier run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    baseline: str | None = None
    """Folder of the statistics (an ExampleStatistics artifact) to compare with. None: those of the span before this
    one, or else of the last other data, that passed validation here."""


@dataclass(kw_only=True)
class SkewConfig(DistanceConfig):
    """Against what the model was asked in service."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    prediction_log: str | None = None
    """The server's --prediction_log folder. None: nothing is compared."""


@dataclass(kw_only=True)
class DataGate:
    """What the data must be like."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_duplicate_share: float = 0.01
    """Largest share of the val and test images that may be an exact copy of an image of another split: what was
    trained on cannot be evaluated on."""

    drift: DriftConfig = field(default_factory=DriftConfig)
    """Compared with an earlier run's data, split by split."""

    skew: SkewConfig = field(default_factory=SkewConfig)
    """The training split compared with the images in a prediction log."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        share("data.max_duplicate_share", self.max_duplicate_share)
