"""The graph: who feeds whom. Nothing runs here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tfx.dsl.compiler import compiler
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner
from tfx.orchestration.pipeline import Pipeline

from isthmus.tfx_pipeline.beam_options import beam_args
from isthmus.tfx_pipeline.code import CODE, code_keys
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.pipeline import CacheKeys, Places, create_pipeline, local_metadata

PLACES = Places(
    pipeline_root="/root", serving="/serving/colours", data_root="/images", bundle="/bundle", home="/home"
)
KEYS = CacheKeys(data="d", manifest="m", champion="", code=dict.fromkeys(CODE, "c"))


def build(config: PipelineConfig | None = None, **arguments: Any) -> Pipeline:
    """The pipeline with everything given."""
    defaults: dict[str, Any] = {
        "name": "colours",
        "classes_file": "/classes/1/classes.json",
        "dataset": {"name": "colours", "source": "here", "digest": "d", "splits": {"test": 1}},
        "places": PLACES,
        "config": config or PipelineConfig(),
        "keys": KEYS,
        "metadata_connection_config": local_metadata(Path("/metadata.db")),
    }
    return create_pipeline(**{**defaults, **arguments})


def edges(pipeline: Pipeline) -> dict[str, dict[str, str]]:
    """{component: {input: producing component}} of the compiled pipeline."""
    return {
        node.pipeline_node.node_info.id: {
            key: spec.channels[0].producer_node_query.id
            for key, spec in node.pipeline_node.inputs.inputs.items()
        }
        for node in compiler.Compiler().compile(pipeline).nodes
    }


def test_who_feeds_whom() -> None:
    assert edges(build()) == {
        "ImageExampleGen": {},
        "StatisticsGen": {"examples": "ImageExampleGen"},
        "SchemaGen": {"statistics": "StatisticsGen"},
        "ExampleValidator": {
            "examples": "ImageExampleGen",
            "statistics": "StatisticsGen",
            "schema": "SchemaGen",
        },
        "DataReport": {
            "examples": "ImageExampleGen",
            "statistics": "StatisticsGen",
            "anomalies": "ExampleValidator",
        },
        "BundleImporter": {},
        "ParityValidator": {"model": "BundleImporter", "examples": "ImageExampleGen"},
        "ChampionResolver": {"model": "BundleImporter"},
        "Evaluator": {
            "examples": "ImageExampleGen",
            "model": "BundleImporter",
            "baseline_model": "ChampionResolver",
        },
        "ServerValidator": {"model": "BundleImporter"},
        "Pusher": {
            "model": "BundleImporter",
            "anomalies": "ExampleValidator",
            "parity": "ParityValidator",
            "evaluation": "Evaluator",
            "model_blessing": "Evaluator",
            "infra_blessing": "ServerValidator",
        },
        "Registrar": {
            "model": "BundleImporter",
            "pushed_model": "Pusher",
            "evaluation": "Evaluator",
            "parity": "ParityValidator",
            "infra_blessing": "ServerValidator",
        },
    }


def test_a_curated_schema_takes_the_place_of_the_inferred_one() -> None:
    graph = edges(build(schema_file="/schemas/1/schema.pbtxt"))
    assert "SchemaGen" not in graph
    assert graph["ExampleValidator"]["schema"] == "ImportSchemaGen"


def test_the_same_arguments_give_the_same_pipeline() -> None:
    compiled = [compiler.Compiler().compile(build()).SerializeToString(deterministic=True) for _ in range(2)]
    assert compiled[0] == compiled[1]


def parameters(pipeline: Pipeline, node_id: str) -> bytes:
    """A node of the compiled pipeline, as bytes."""
    (node,) = [
        node.pipeline_node
        for node in compiler.Compiler().compile(pipeline).nodes
        if node.pipeline_node.node_info.id == node_id
    ]
    return node.parameters.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("keys", "changed"),
    [
        (replace(KEYS, data="x"), {"ImageExampleGen"}),
        (replace(KEYS, manifest="x"), {"BundleImporter"}),
        (replace(KEYS, champion="x"), {"ChampionResolver"}),
        (replace(KEYS, code={**KEYS.code, "Evaluator": "x"}), {"Evaluator"}),
        (replace(KEYS, code={**KEYS.code, "ExampleValidator": "x"}), {"ExampleValidator"}),
        (replace(KEYS, code={**KEYS.code, "DataReport": "x"}), {"DataReport"}),
    ],
)
def test_a_changed_key_changes_one_component(keys: CacheKeys, changed: set[str]) -> None:
    before, after = build(), build(keys=keys)
    different = {c.id for c in before.components if parameters(before, c.id) != parameters(after, c.id)}
    assert different == changed


def test_a_changed_threshold_changes_the_evaluator_and_the_record() -> None:
    config = PipelineConfig()
    config.evaluation.min_accuracy = 0.99
    before, after = build(), build(config)
    different = {c.id for c in before.components if parameters(before, c.id) != parameters(after, c.id)}
    assert different == {"Evaluator", "Registrar"}


def test_every_component_of_ours_has_its_code() -> None:
    ours = {c.id for c in build().components if type(c).__module__.startswith("isthmus.")}
    assert ours == set(CODE)
    keys = code_keys()
    assert keys.keys() == CODE.keys()
    assert len(set(keys.values())) == len(keys)


def test_beam_runs_in_process_unless_told_otherwise() -> None:
    assert beam_args(workers=1) == [
        "--runner=FnApiRunner",
        "--direct_running_mode=in_memory",
        "--direct_num_workers=1",
        "--sdk_container_image=unused",
    ]
    assert beam_args(workers=2, further=("--x=1",)) == [
        "--runner=isthmus.tfx_pipeline.forking_runner.ForkingRunner",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
        "--sdk_container_image=unused",
        "--x=1",
    ]
    elsewhere = ("--runner=FlinkRunner", "--flink_master=host:8081")
    assert beam_args(workers=2, further=elsewhere) == list(elsewhere)


def test_it_compiles_for_kubeflow(tmp_path: Path) -> None:
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        config=kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image="image"),
        output_dir=str(tmp_path),
        output_filename="pipeline.json",
    )
    runner.run(build(metadata_connection_config=None))
    text = (tmp_path / "pipeline.json").read_text()
    for component in ("ImageExampleGen", "ParityValidator", "ServerValidator", "Pusher", "Registrar"):
        assert f"{component}_executor" in text
    assert "isthmus.tfx_pipeline.server_validator.Executor" in text
