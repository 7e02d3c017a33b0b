"""What TFMA does not count, counted in the same pass: right answers by slice of both models, confusion, calibration.

TFMA slices by the values of features. Sizes and brightnesses are continuous, so `with_buckets` puts buckets beside
them before TFMA slices; and a paired interval needs to know on how many images both models are right, which no
metric of TFMA says, so `with_tally` counts it. Both are extractors of TFMA: the models are asked once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tfx.dsl.io import fileio

from isthmus.tfx_pipeline.slices import WHOLE, Slice, bucket

LABEL_FEATURE = "image/class/label"
CLASS_FEATURE = "image/class/text"
SIZE_FEATURE = "isthmus/slice/size"
BRIGHTNESS_FEATURE = "isthmus/slice/brightness"

#: {kind of slices: the feature that TFMA slices by}.
SLICE_FEATURES = {"class": CLASS_FEATURE, "size": SIZE_FEATURE, "brightness": BRIGHTNESS_FEATURE}

NUM_BINS = 10
_UNBATCH, _SLICE_KEYS = "ExtractUnbatchedInputs", "ExtractSliceKeys"


@dataclass(kw_only=True)
class Bin:
    """The images whose best class got a probability between two tenths."""

    num_images: int = 0
    sum_confidence: float = 0.0
    """Sum of those probabilities."""

    num_right: int = 0


@dataclass(kw_only=True)
class Tally:
    """Counts over the evaluation split."""

    slices: list[Slice] = field(default_factory=list)
    """The whole first, then by kind and value."""

    confusion: list[tuple[int, int, int]] = field(default_factory=list)
    """(class, answered class, images), sorted; only what occurred."""

    bins: list[Bin] = field(default_factory=list)
    """`NUM_BINS` of them, by the probability of the best class."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean over images of |confidence − accuracy| of their bin."""
        total = sum(one.num_images for one in self.bins)
        return sum(abs(one.sum_confidence - one.num_right) for one in self.bins) / total

    @property
    def whole(self) -> Slice:
        """Every image."""
        return self.slices[0]

    @classmethod
    def read(cls, path: str) -> Tally:
        """What a run wrote."""
        with fileio.open(path, "r") as file:
            values = json.loads(file.read())
        return cls(
            slices=[Slice(**one) for one in values["slices"]],
            confusion=[tuple(row) for row in values["confusion"]],
            bins=[Bin(**one) for one in values["bins"]],
        )


def extractors(defaults: Sequence[Any], *, edges: dict[str, list[int]], target: str) -> list[Any]:
    """TFMA's extractors with the two of ours in their places.

    Args:
        defaults: `tfma.default_extractors`.
        edges: {"size": pixels, "brightness": levels}, see `config.EvaluationGate`.
        target: The file that the tally is written to.
    """
    extended = []
    for one in defaults:
        if one.stage_name == _SLICE_KEYS:
            extended.append(
                tfma.extractors.Extractor(stage_name="isthmus.Buckets", ptransform=_Buckets(edges))
            )
        extended.append(one)
    assert len(extended) == len(defaults) + 1, "TFMA has renamed its extractor of slices"
    return [*extended, tfma.extractors.Extractor(stage_name="isthmus.Tally", ptransform=_WriteTally(target))]


class _Buckets(beam.PTransform):
    """Adds the features that sizes and brightnesses are sliced by."""

    def __init__(self, edges: dict[str, list[int]]) -> None:
        super().__init__()
        self._edges = edges

    def expand(self, extracts: Any) -> Any:
        return extracts | beam.Map(_with_buckets, self._edges)


def _with_buckets(extract: dict[str, Any], edges: dict[str, list[int]]) -> dict[str, Any]:
    features = extract[tfma.FEATURES_KEY]
    size = bucket(min(_number(features["image/height"]), _number(features["image/width"])), edges["size"])
    brightness = bucket(_number(features["image/brightness"]), edges["brightness"])
    added = {SIZE_FEATURE: _text(size), BRIGHTNESS_FEATURE: _text(brightness)}
    return {**extract, tfma.FEATURES_KEY: {**features, **added}}


def _number(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def _text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=object)


class _WriteTally(beam.PTransform):
    """Counts beside the stream, which passes unchanged."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def expand(self, extracts: Any) -> Any:
        _ = (
            extracts
            | "Counted" >> beam.Map(_counted)
            | "Added" >> beam.CombineGlobally(_Add())
            | "Write" >> beam.io.WriteToText(self._target, num_shards=1, shard_name_template="")
        )
        return extracts


def _counted(extract: dict[str, Any]) -> tuple[Any, ...]:
    """(label, answer, confidence, champion's answer or None, [(kind, value) of its slices]) of one image."""
    labels, predictions = extract[tfma.LABELS_KEY], extract[tfma.PREDICTIONS_KEY]
    champion = None
    if isinstance(labels, dict):
        # Of two models TFMA keeps everything by the model's name, even what is the same.
        labels = labels[tfma.CANDIDATE_KEY]
        champion = int(np.argmax(np.asarray(predictions[tfma.BASELINE_KEY]["probabilities"]).reshape(-1)))
        predictions = predictions[tfma.CANDIDATE_KEY]
    label = int(_number(labels))
    probabilities = np.asarray(predictions["probabilities"]).reshape(-1)
    answer = int(np.argmax(probabilities))
    features = extract[tfma.FEATURES_KEY]
    slices = [
        (kind, np.asarray(features[feature]).reshape(-1)[0].decode())
        for kind, feature in SLICE_FEATURES.items()
    ]
    return label, answer, float(probabilities[answer]), champion, slices


class _Add(beam.CombineFn):
    """Adds up what `_counted` says, to one line of JSON."""

    def create_accumulator(self) -> dict[str, Any]:
        return {"slices": {}, "confusion": {}, "bins": np.zeros((NUM_BINS, 3)), "champion": False}

    def add_input(self, sums: dict[str, Any], image: tuple[Any, ...]) -> dict[str, Any]:
        label, answer, confidence, champion, slices = image
        right, champion_right = label == answer, label == champion
        counts = np.array([1, right, champion_right, right and champion_right], dtype=np.int64)
        for key in [(WHOLE, ""), *slices]:
            sums["slices"][key] = sums["slices"].get(key, 0) + counts
        sums["confusion"][label, answer] = sums["confusion"].get((label, answer), 0) + 1
        # A probability of 1 belongs to the last tenth; one that is no number is no confidence at all.
        confidence = 0.0 if math.isnan(confidence) else confidence
        tenth = min(int(confidence * NUM_BINS), NUM_BINS - 1)
        sums["bins"][tenth] += (1, confidence, right)
        sums["champion"] |= champion is not None
        return sums

    def merge_accumulators(self, accumulators: Iterable[dict[str, Any]]) -> dict[str, Any]:
        merged = self.create_accumulator()
        for sums in accumulators:
            for part in ("slices", "confusion"):
                for key, counts in sums[part].items():
                    merged[part][key] = merged[part].get(key, 0) + counts
            merged["bins"] += sums["bins"]
            merged["champion"] |= sums["champion"]
        return merged

    def extract_output(self, sums: dict[str, Any]) -> str:
        kinds = [WHOLE, *SLICE_FEATURES]
        slices = []
        for kind, value in sorted(sums["slices"], key=lambda key: (kinds.index(key[0]), _in_order(key[1]))):
            num_images, num_right, num_champion, num_both = map(int, sums["slices"][kind, value])
            slices.append(
                Slice(
                    kind=kind,
                    value=value,
                    num_images=num_images,
                    num_right=num_right,
                    num_champion_right=num_champion if sums["champion"] else None,
                    num_both_right=num_both if sums["champion"] else None,
                )
            )
        bins = [Bin(num_images=int(n), sum_confidence=float(c), num_right=int(r)) for n, c, r in sums["bins"]]
        confusion = [[*pair, count] for pair, count in sorted(sums["confusion"].items())]
        return json.dumps(
            {
                "slices": [asdict(one) for one in slices],
                "confusion": confusion,
                "bins": [asdict(one) for one in bins],
            }
        )


def _in_order(value: str) -> tuple[int, str]:
    """Buckets by their number, classes by their name."""
    first = value.split("-", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    return (int(first) if first.isdecimal() else -1), value
