"""The ML-BOM against the schema that the library ships, and what it says about a model."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest

from isthmus.lineage import bom, query
from isthmus.lineage.errors import LineageError

SCHEMA = json.loads(
    resources.files("cyclonedx.schema._res").joinpath("bom-1.6.SNAPSHOT.schema.json").read_text()
)
OTHER_SCHEMAS = {
    name: json.loads(resources.files("cyclonedx.schema._res").joinpath(name).read_text())
    for name in ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
}
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def faults(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What a JSON value breaks of a schema: the keywords of JSON Schema that CycloneDX 1.6 constrains with.

    The library's own validator needs the package jsonschema and says the same.
    """
    if "$ref" in schema:
        file, _, path = schema["$ref"].partition("#")
        document: Any = OTHER_SCHEMAS[file] if file else SCHEMA
        for part in path.strip("/").split("/") if path else []:
            document = document[part]
        return faults(value, document, where)
    if "type" in schema and not isinstance(value, KINDS[schema["type"]]):
        return [f"{where} is no {schema['type']}"]
    found = faults_of_value(value, schema, where)
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            fits = sum(not faults(value, each, where) for each in schema[choice])
            if fits == 0 or (choice == "oneOf" and fits > 1):
                found.append(f"{where} fits {fits} of {choice}")
    for each in schema.get("allOf", ()):
        found += faults(value, each, where)
    if isinstance(value, dict):
        found += faults_of_object(value, schema, where)
    if isinstance(value, list):
        for index, each in enumerate(value):
            found += faults(each, schema.get("items", {}), f"{where}[{index}]")
        if schema.get("uniqueItems") and len({json.dumps(each, sort_keys=True) for each in value}) < len(
            value
        ):
            found.append(f"{where} has an item twice")
    return found


def faults_of_value(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    return found


def faults_of_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> list[str]:
    known = schema.get("properties", {})
    found = [f"{where} lacks {key}" for key in schema.get("required", ()) if key not in value]
    if schema.get("additionalProperties") is False:
        patterns = schema.get("patternProperties", ())
        extra = {key for key in set(value) - set(known) if not any(re.search(p, key) for p in patterns)}
        found += [f"{where} has {key}" for key in sorted(extra)]
    for key in value.keys() & known.keys():
        found += faults(value[key], known[key], f"{where}.{key}")
    return found


def test_the_check_finds_what_is_wrong():
    assert faults({"bomFormat": "CycloneDX", "specVersion": "1.6"}, SCHEMA) == []
    wrong = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "7",
        "components": [
            {"type": "machine", "name": "x", "modelCard": {"quantitativeAnalysis": {"metrics": []}}}
        ],
    }
    text = "\n".join(faults(wrong, SCHEMA))
    for piece in ("serialNumber", "'machine' is not one of", "quantitativeAnalysis has metrics"):
        assert piece in text


VERSIONS = {"torch": "2.15.0", "timm": "1.0.31"}


def test_the_bom_of_a_version_is_valid_and_whole(tell, home):
    story = tell("a", created="2026-11-22T10:00:00Z", versions=VERSIONS | {"tensorflow": "2.21.0"})
    document = bom.bom(query.lineage("digits", home=home))
    assert faults(document, SCHEMA) == []
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    model = document["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "digits", "1")
    parts = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    files = story.manifest["files"]
    assert parts["model.onnx"] == story.manifest["export"]["onnx_sha256"]
    assert parts["model.safetensors"] == story.manifest["training"]["checkpoint_sha256"]
    assert parts["saved_model/saved_model.pb"] == files["saved_model/saved_model.pb"]["sha256"]
    (data,) = [each for each in document["components"] if each["type"] == "data"]
    assert {"name": "isthmus:digest", "value": story.data_digest} in data["properties"]
    libraries = {each["purl"] for each in document["components"] if each["type"] == "library"}
    assert libraries == {"pkg:pypi/torch@2.15.0", "pkg:pypi/timm@1.0.31", "pkg:pypi/tensorflow@2.21.0"}
    card = model["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": data["bom-ref"]}]
    assert card["modelParameters"]["modelArchitecture"] == "resnet18"
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "accuracy", "value": "0.98"} in metrics
    (depends,) = [each for each in document["dependencies"] if each["ref"] == "model"]
    assert set(depends["dependsOn"]) == {data["bom-ref"], *libraries}
    assert document["serialNumber"] == bom.bom(query.lineage("digits", home=home))["serialNumber"]


def test_a_metric_of_a_slice_says_which():
    assert bom._metric("accuracy/label:3", 0.5) == {"type": "accuracy", "value": "0.5", "slice": "label:3"}


def test_a_bom_is_of_one_model(told):
    with pytest.raises(LineageError, match="leads to 2 models; a BOM is of one: give models:/NAME/NUMBER"):
        bom.bom(query.lineage(told[0].data_digest, home=told[0].home))
