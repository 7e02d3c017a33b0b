"""A LocalDagRunner that says what happened: one callback per component, when it has ended."""

from __future__ import annotations

import copy
import datetime
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.portable import runtime_parameter_utils
from tfx.proto.orchestration import pipeline_pb2
from tfx.types import artifact_utils

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Outcome:
    """How one component ended."""

    node: str
    """Its id, such as `StatisticsGen`."""

    number: int
    """Its place in the run, from 1."""

    total: int
    """Number of components in the run."""

    seconds: float
    """Wall time, the look-up in the cache included."""

    cached: bool
    """Whether its outputs are those of an earlier run."""

    outputs: dict[str, types.Artifact] = field(default_factory=dict)
    """Its output artifacts by key; each of our components has one per key."""


class ComponentFailed(Exception):  # noqa: N818 - it says what happened
    """A component raised; `__cause__` is what it raised, `node` its id."""

    def __init__(self, node: str) -> None:
        """Remember the component's id."""
        super().__init__(node)
        self.node = node


class ReportingRunner(LocalDagRunner):
    """Runs the nodes of a pipeline one by one through LocalDagRunner and reports each.

    LocalDagRunner has no hook, but it runs whatever nodes the pipeline has that it is given: here it is given
    one node at a time, all with the same run id.
    """

    def __init__(self, report: Callable[[Outcome], None], *, uncached: Collection[str] = ()) -> None:
        """Prepare a runner.

        Args:
            report: Called after each component.
            uncached: Ids of components that run even if the cache has their outputs.
        """
        super().__init__()
        self._report = report
        self._uncached = frozenset(uncached)

    def run_with_ir(self, pipeline: pipeline_pb2.Pipeline, run_options: Any = None) -> None:
        """Run every node in order; stops at the first that raises.

        Raises:
            ComponentFailed: A component raised.
        """
        assert run_options is None, "partial runs are not offered"
        run_id = datetime.datetime.now().isoformat()
        runtime_parameter_utils.substitute_runtime_parameter(
            pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        connection = _connection(pipeline)
        for number, node in enumerate(pipeline.nodes, start=1):
            single = copy.deepcopy(pipeline)
            del single.nodes[:]
            single.nodes.append(node)
            node_id = node.pipeline_node.node_info.id
            if node_id in self._uncached:
                single.nodes[0].pipeline_node.execution_options.caching_options.enable_cache = False
            started = time.monotonic()
            try:
                super().run_with_ir(single)
            except Exception as error:
                logger.debug("%s raised", node_id, exc_info=True)
                raise ComponentFailed(node_id) from error
            cached, outputs = _read_execution(connection, node.pipeline_node)
            self._report(
                Outcome(
                    node=node_id,
                    number=number,
                    total=len(pipeline.nodes),
                    seconds=time.monotonic() - started,
                    cached=cached,
                    outputs=outputs,
                )
            )


def _connection(pipeline: pipeline_pb2.Pipeline) -> Any:
    """MLMD's connection as LocalDagRunner finds it."""
    config = runner_utils.extract_local_deployment_config(pipeline).metadata_connection_config
    return getattr(config, config.WhichOneof("connection_config"))


def _read_execution(
    connection: Any, node: pipeline_pb2.PipelineNode
) -> tuple[bool, dict[str, types.Artifact]]:
    """Whether this run's execution of a node came from the cache, and its output artifacts."""
    (run_context,) = [
        c for c in node.contexts.contexts if c.type.name == constants.PIPELINE_RUN_CONTEXT_TYPE_NAME
    ]
    with metadata.Metadata(connection) as handle:
        store = handle.store
        context = store.get_context_by_type_and_name(
            run_context.type.name, run_context.name.field_value.string_value
        )
        type_id = store.get_execution_type(node.node_info.type.name).id
        (execution,) = [e for e in store.get_executions_by_context(context.id) if e.type_id == type_id]
        if execution.last_known_state not in (
            metadata_store_pb2.Execution.COMPLETE,
            metadata_store_pb2.Execution.CACHED,
        ):
            raise ComponentFailed(node.node_info.id)
        events = [
            event
            for event in store.get_events_by_execution_ids([execution.id])
            if event.type == metadata_store_pb2.Event.OUTPUT
        ]
        found = {
            artifact.id: artifact for artifact in store.get_artifacts_by_id([e.artifact_id for e in events])
        }
        types_ = {t.id: t for t in store.get_artifact_types()}
        outputs = {
            event.path.steps[0].key: artifact_utils.deserialize_artifact(
                types_[found[event.artifact_id].type_id], found[event.artifact_id]
            )
            for event in events
        }
        return execution.last_known_state == metadata_store_pb2.Execution.CACHED, outputs
