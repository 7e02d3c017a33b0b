"""`isthmus lineage … --bom BOM.json`: the CycloneDX ML-BOM of a model, from its version and its manifest.

CycloneDX 1.6, JSON. The model is the document's subject, with a model card; its weights, its ONNX file and every
file that serves are parts of it with their SHA-256; the data set and the libraries are what it depends on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from isthmus.lineage.chain import Chain, Record
from isthmus.lineage.errors import LineageError
from isthmus.lineage.gates import saved_model_table

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

_NAMESPACE = uuid.UUID("b5fd1f0e-6f3c-5d0a-9a6e-6f3c5d0a9a6e")
_MODEL, _DATA = "model", "data"
_INPUTS = ("string: encoded images (JPEG, PNG, GIF, BMP), N of them",)
_OUTPUTS = ("float32: probabilities, N by C", "int64: class ids, N", "string: labels, N")


def bom(chain: Chain) -> dict[str, Any]:
    """The BOM of the one model that an answer speaks of, as a JSON value.

    Raises LineageError where the answer has several models, or nothing of its manifest is left.
    """
    if len(chain.records) != 1:
        raise LineageError(
            f"{chain.subject} leads to {len(chain.records)} models; a BOM is of one: give models:/NAME/NUMBER"
        )
    (record,) = chain.records
    if record.manifest is None:
        raise LineageError(
            f"neither bundle nor pushed version of {chain.subject} is left to read the manifest from"
        )
    value = _document(record, record.manifest)
    # The library has no class for the model card, which is what makes a BOM an ML-BOM.
    value["metadata"]["component"]["modelCard"] = _model_card(record, record.manifest)
    return value


def _document(record: Record, manifest: Mapping[str, Any]) -> dict[str, Any]:
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    model = _model(record, manifest)
    data, libraries = _data(manifest), _libraries(manifest)
    document = Bom(components=[data, *libraries])
    document.metadata.component = model
    if created := manifest.get("created") or (record.version.created if record.version else None):
        document.metadata.timestamp = datetime.fromisoformat(created)
    document.serial_number = uuid.uuid5(_NAMESPACE, manifest["saved_model_digest"])
    document.register_dependency(model, [data, *libraries])
    return dict(json.loads(JsonV1Dot6(document).output_as_string()))


def _model(record: Record, manifest: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    training, export = manifest["training"], manifest["export"]
    source = training.get("source") or {}
    links = {
        "saved_model_digest": manifest["saved_model_digest"],
        "git_commit": source.get("commit"),
        "git_dirty": source.get("dirty"),
        "rung": export.get("rung"),
        "train_run_id": (training.get("mlflow") or {}).get("run_id"),
        "export_run_id": (export.get("mlflow") or {}).get("run_id"),
        "pipeline_run_id": record.tag("pipeline_run_id"),
        "parity_passed": manifest["parity"].get("passed"),
    }
    version = record.version
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest["name"],
        version=str(version.version) if version else manifest["saved_model_digest"][:12],
        bom_ref=_MODEL,
        properties=_properties(links),
        components=[
            _file("weights", "model.safetensors", training.get("checkpoint_sha256")),
            _file("onnx", "model.onnx", export.get("onnx_sha256")),
            *(
                _file("saved_model", f"saved_model/{path}", row["sha256"])
                for path, row in sorted(saved_model_table(manifest).items())
            ),
        ],
    )


def _file(part: str, name: str, sha256: str | None) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.FILE,
        name=name,
        bom_ref=f"{part}:{name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else [],
    )


def _data(manifest: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    dataset = manifest["dataset"]
    facts = {
        # A digest over all files and their names: no file has it, so it is no CycloneDX hash.
        "digest": dataset.get("digest"),
        "source": dataset.get("source"),
        "splits": dataset.get("splits"),
    }
    return Component(
        type=ComponentType.DATA,
        name=dataset.get("name") or "data",
        version=(dataset.get("digest") or "")[:12] or None,
        bom_ref=_DATA,
        properties=_properties(facts),
    )


def _libraries(manifest: Mapping[str, Any]) -> list[Component]:
    """What training and export ran with; a library that they had in two versions is listed twice."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found: dict[tuple[str, str], list[str]] = {}
    for stage, versions in (
        ("training", manifest["training"].get("versions") or {}),
        ("export", manifest.get("versions") or {}),
    ):
        for name, version in versions.items():
            found.setdefault((name, str(version)), []).append(stage)
    return [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"pkg:pypi/{name}@{version}",
            purl=PackageURL(type="pypi", name=name, version=version),
            properties=_properties({"used_by": ", ".join(stages)}),
        )
        for (name, version), stages in sorted(found.items())
    ]


def _properties(facts: Mapping[str, Any]) -> list[Property]:
    from cyclonedx.model import Property

    return [
        Property(
            name=f"isthmus:{key}",
            value=value if isinstance(value, str) else json.dumps(value, sort_keys=True),
        )
        for key, value in facts.items()
        if value is not None
    ]


def _model_card(record: Record, manifest: Mapping[str, Any]) -> dict[str, Any]:
    model = manifest["model"]
    multi = model.get("head") == "multi_label"
    metrics = record.version.metrics if record.version else {}
    measured = [_metric(name, value) for name, value in metrics.items()]
    measured += [_metric(name, value) for name, value in (manifest["training"].get("metrics") or {}).items()]
    measured += [
        {"type": "parity error", "slice": stage["stage"], "value": repr(float(stage["error"]))}
        for stage in manifest["parity"].get("stages") or []
        if stage.get("error") is not None
    ]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": f"{'multi-label ' if multi else ''}image classification",
            "modelArchitecture": str(model["name"]),
            "datasets": [{"ref": _DATA}],
            "inputs": [{"format": each} for each in _INPUTS],
            "outputs": [{"format": each} for each in _OUTPUTS],
        },
        "quantitativeAnalysis": {"performanceMetrics": measured},
    }


def _metric(name: str, value: Any) -> dict[str, str]:
    """`accuracy/label:3` is the metric `accuracy` of the slice `label:3`."""
    kind, _, slice_ = name.partition("/")
    return {"type": kind, "value": repr(value), **({"slice": slice_} if slice_ else {})}
