"""DataReport: one self-contained HTML page about the data of a run; see `report_page` for how it looks."""

from __future__ import annotations

import os
from typing import Any

from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from isthmus.tfx_pipeline.anomalies import read_findings, words
from isthmus.tfx_pipeline.artifacts import DataReportPage
from isthmus.tfx_pipeline.image_example_gen import read_report
from isthmus.tfx_pipeline.image_items import SERVING
from isthmus.tfx_pipeline.report_page import Feature, Sample, page

PAGE_FILE = "index.html"


class Executor(base_executor.BaseExecutor):
    """Draws what the other components have found."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Write index.html."""
        (statistics,) = input_dict["statistics"]
        samples = [sample_of(statistics, split, split) for split in statistics.splits]
        if exec_properties["baseline"]:
            earlier = standard_artifacts.ExampleStatistics()
            earlier.uri, earlier.splits = exec_properties["baseline"], ["train"]
            samples.append(sample_of(earlier, "train", "earlier train"))
        if input_dict.get("serving_statistics"):
            samples.append(sample_of(input_dict["serving_statistics"][0], SERVING, "served"))
        (report,) = output_dict["report"]
        text = page(
            samples,
            intake=read_report(input_dict["examples"][0]),
            findings=read_findings(input_dict["anomalies"][0]),
        )
        with fileio.open(os.path.join(report.uri, PAGE_FILE), "w") as file:
            file.write(text)


def sample_of(statistics: types.Artifact, split: str, name: str) -> Sample:
    """What the page draws of one split's statistics."""
    dataset = stats_artifact_utils.load_statistics(statistics, split).proto().datasets[0]
    features = {}
    for feature in dataset.features:
        path = ".".join(feature.path.step)
        if feature.WhichOneof("stats") == "string_stats":
            features[path] = Feature(shares=words(feature))
            continue
        numbers = feature.num_stats
        histogram = numbers.histograms[0].buckets if numbers.histograms else []
        features[path] = Feature(
            mean=numbers.mean,
            std=numbers.std_dev,
            low=numbers.min,
            high=numbers.max,
            buckets=[(b.low_value, b.high_value, b.sample_count) for b in histogram],
        )
    return Sample(name=name, num_images=int(dataset.num_examples), features=features)


class DataReportSpec(ComponentSpec):
    """Inputs, outputs and parameters of DataReport."""

    PARAMETERS = {  # noqa: RUF012 - TFX reads class attributes
        "baseline": ExecutionParameter(type=str),
        "code": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "serving_statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics, optional=True),
    }
    OUTPUTS = {"report": ChannelParameter(type=DataReportPage)}  # noqa: RUF012


class DataReport(base_component.BaseComponent):
    """A page for a person; it decides nothing."""

    SPEC_CLASS = DataReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        *,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        anomalies: types.BaseChannel,
        serving_statistics: types.BaseChannel | None,
        baseline: str,
        code: str,
    ) -> None:
        """Describe one run; see ExampleValidator for the arguments."""
        super().__init__(
            DataReportSpec(
                examples=examples,
                statistics=statistics,
                anomalies=anomalies,
                serving_statistics=serving_statistics,
                baseline=baseline,
                code=code,
                report=types.Channel(type=DataReportPage),
            )
        )
