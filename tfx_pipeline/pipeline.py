"""The pipeline as a value: which components there are, and who feeds whom. Nothing runs here.

images → the data half (see data_pipeline): Examples, and ExampleValidator ─ anomalies ─┐
bundle → BundleImporter ─┬→ ParityValidator ────────────────────────────────── parity ──┤
                         ├→ ChampionResolver → Evaluator ────────────────── blessing ───┼→ Pusher → Registrar
                         └→ ServerValidator ────────────────────────── infra blessing ──┘
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline

from isthmus.lineage.files import canonical_json
from isthmus.tfx_pipeline.beam_options import beam_args
from isthmus.tfx_pipeline.bundle_importer import BundleImporter
from isthmus.tfx_pipeline.champion_resolver import ChampionResolver
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.tfx_pipeline.data_pipeline import DataInputs, data_components
from isthmus.tfx_pipeline.evaluator import Evaluator
from isthmus.tfx_pipeline.example_validator import ExampleValidator
from isthmus.tfx_pipeline.image_example_gen import ImageExampleGen
from isthmus.tfx_pipeline.parity_validator import ParityValidator
from isthmus.tfx_pipeline.pipeline_names import cluster_name
from isthmus.tfx_pipeline.pusher import Pusher
from isthmus.tfx_pipeline.registrar import Registrar
from isthmus.tfx_pipeline.server_validator import ServerValidator
from isthmus.tfx_pipeline.sources import Source

RUN_ID = "{{$.pipeline_job_uuid}}"
"""What Kubeflow and Vertex replace by the id of a run where it is the value of a parameter."""

Gates = tuple[ParityValidator, ChampionResolver, Evaluator, ServerValidator]


@dataclass(kw_only=True, frozen=True)
class Places:
    """Where a run reads and writes. Local paths or anything that TFX and Beam open."""

    pipeline_root: str
    """Folder of the artifacts."""

    serving: str
    """Folder of the pushed versions of this model."""

    data_root: str
    """The image folder."""

    bundle: str
    """The bundle's directory."""

    home: str
    """Home folder, where the registry is by default."""

    tracking_uri: str = ""
    """MLflow store; "" for the one in the home folder."""

    verification_key: str = ""
    """Public key or certificates whose signature a model must have to be pushed; "" for none."""


@dataclass(kw_only=True, frozen=True)
class CacheKeys:
    """What the world outside looked like at the start: a component whose key has changed runs again."""

    data: str
    """Fingerprint of the image files."""

    manifest: str
    """sha256 of the bundle's manifest.json."""

    champion: str
    """SavedModel digest of the champion to compare with, or "" when there is none."""

    code: dict[str, str]
    """{component: digest of the code its answer depends on}."""


def create_pipeline(
    *,
    name: str,
    classes_file: str,
    dataset: dict[str, Any],
    places: Places,
    config: PipelineConfig,
    keys: CacheKeys,
    schema_file: str | None = None,
    inputs: DataInputs | None = None,
    metadata_connection_config: Any = None,
    enable_cache: bool = True,
    on_cluster: bool = False,
) -> Pipeline:
    """Build the pipeline. A pure function of its arguments.

    Args:
        name: Registered model name; also the pipeline's.
        classes_file: The model's labels (see `classes`); its path must change with its content.
        dataset: What the images are called in the record (see `Source.record`).
        places: Where to read and write.
        config: The recipe's `pipeline:` section.
        keys: What the cache depends on besides the parameters.
        schema_file: A curated schema; its path must change with its content. None: inferred from `train`.
        inputs: What the data half reads. None: the folder `places.data_root` with its own splits, and `schema_file`.
        metadata_connection_config: MLMD's connection; None where the orchestrator brings its own.
        enable_cache: Whether unchanged components are taken from the last run.
        on_cluster: Whether the tasks run in containers of their own under an orchestrator: a refusal then fails
            the last task, and the pipeline's name is one that Kubeflow and Vertex take.
    """
    folder = Source(pattern=places.data_root, path=places.data_root, kind="folder", fingerprint=keys.data)
    data = data_components(
        inputs or DataInputs(source=folder, schema_file=schema_file),
        classes_file=classes_file,
        config=config,
        code=keys.code,
    )
    model = BundleImporter(
        bundle=places.bundle, manifest_sha256=keys.manifest, code=keys.code["BundleImporter"]
    )
    gates = _model_validation(data.examples, model, name=name, places=places, config=config, keys=keys)
    publication = _publication(
        model,
        data.validator,
        gates,
        name=name,
        dataset=dataset,
        places=places,
        config=config,
        keys=keys,
        on_cluster=on_cluster,
    )
    return Pipeline(
        pipeline_name=cluster_name(name) if on_cluster else name,
        pipeline_root=places.pipeline_root,
        metadata_connection_config=metadata_connection_config,
        enable_cache=enable_cache,
        beam_pipeline_args=beam_args(workers=config.beam_workers, further=config.beam_args),
        components=[*data.all, model, *gates, *publication],
    )


def _model_validation(
    examples: ImageExampleGen,
    model: BundleImporter,
    *,
    name: str,
    places: Places,
    config: PipelineConfig,
    keys: CacheKeys,
) -> Gates:
    """The gates that look at the model."""
    parity = ParityValidator(
        model=model.outputs["model"],
        examples=examples.outputs["examples"],
        evaluation_split=config.evaluation_split,
        logit_error=config.parity.logit_error,
        top1_agreement=config.parity.top1_agreement,
        min_evaluation_images=config.parity.min_evaluation_images,
        code=keys.code["ParityValidator"],
    )
    champion = ChampionResolver(
        model=model.outputs["model"],
        name=name,
        home=places.home,
        tracking_uri=places.tracking_uri,
        champion=keys.champion,
        code=keys.code["ChampionResolver"],
    )
    evaluator = Evaluator(
        examples=examples.outputs["examples"],
        model=model.outputs["model"],
        baseline_model=champion.outputs["baseline"],
        evaluation_split=config.evaluation_split,
        gate=config.evaluation,
        code=keys.code["Evaluator"],
    )
    server = ServerValidator(
        model=model.outputs["model"],
        gate=config.server,
        logit_error=config.parity.logit_error,
        top1_agreement=config.parity.top1_agreement,
        code=keys.code["ServerValidator"],
    )
    return parity, champion, evaluator, server


def _publication(
    model: BundleImporter,
    validator: ExampleValidator,
    gates: Gates,
    *,
    name: str,
    dataset: dict[str, Any],
    places: Places,
    config: PipelineConfig,
    keys: CacheKeys,
    on_cluster: bool,
) -> tuple[Pusher, Registrar]:
    """What happens to a model that passed, and to the record of one that did not."""
    parity, _, evaluator, server = gates
    pusher = Pusher(
        model=model.outputs["model"],
        anomalies=validator.outputs["anomalies"],
        parity=parity.outputs["parity"],
        evaluation=evaluator.outputs["evaluation"],
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=server.outputs["blessing"],
        base_directory=places.serving,
        verification_key=places.verification_key,
        code=keys.code["Pusher"],
    )
    registrar = Registrar(
        model=model.outputs["model"],
        pushed_model=pusher.outputs["pushed_model"],
        evaluation=evaluator.outputs["evaluation"],
        parity=parity.outputs["parity"],
        infra_blessing=server.outputs["blessing"],
        name=name,
        bundle=places.bundle,
        home=places.home,
        tracking_uri=places.tracking_uri,
        settings=canonical_json(settings(config)),
        dataset=canonical_json(dataset),
        run=RUN_ID if on_cluster else "",
        on_cluster=on_cluster,
        code=keys.code["Registrar"],
    )
    return pusher, registrar


def settings(config: PipelineConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, for the record."""
    values = asdict(config)
    values["schema"] = None if config.schema is None else str(config.schema)
    class_map = config.input.class_map
    values["input"]["class_map"] = None if class_map is None else str(class_map)
    values["beam_args"] = list(config.beam_args)
    # Where it ran is no part of what was decided.
    del values["cluster"]
    return values


def local_metadata(database: Path) -> Any:
    """MLMD in a SQLite file."""
    return metadata.sqlite_metadata_connection_config(str(database))
