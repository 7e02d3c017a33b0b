"""A recipe: one YAML file that holds everything one experiment needs.

    recipe = load(Path("recipes/digits.yaml"), overrides={"train.epochs": 3, "model.name": "resnet18"})

Each section is the configuration dataclass of the part that reads it; an unknown key or a value of the wrong
type is refused with its place in the file and what would be accepted.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import yaml

from isthmus.cli.errors import UsageError
from isthmus.export.config import ExportConfig
from isthmus.lineage.config import RegistryConfig, SigningConfig
from isthmus.tfx_pipeline.config import PipelineConfig
from isthmus.training.config import DataConfig, ModelConfig, TrainConfig
from isthmus.training.sweep_config import SweepConfig


@dataclasses.dataclass(kw_only=True)
class Recipe:
    """Everything one experiment needs, from images to the registered model."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    """Name of the registered model, the MLflow experiment and the served model: letters, digits, - and _."""
    description: str = ""
    """What the recipe reaches and how long it takes, in a sentence."""
    data: DataConfig
    """Where the images come from."""
    model: ModelConfig
    """Which timm model, with which arguments."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How it is trained."""
    sweep: SweepConfig | None = None
    """What isthmus train --sweep tries."""
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    """How it crosses to TensorFlow, and the gates it must pass."""
    pipeline: PipelineConfig = dataclasses.field(default_factory=PipelineConfig)
    """What the pipeline checks before it pushes."""
    registry: RegistryConfig = dataclasses.field(default_factory=RegistryConfig)
    """Who may promote, and what is kept."""
    signing: SigningConfig = dataclasses.field(default_factory=SigningConfig)
    """The key that a bundle is signed with, and the one that its signature must answer to."""

    def __post_init__(self) -> None:
        if not self.name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in self.name):
            raise ValueError(f"name {self.name!r}: use letters, digits, - and _ only")

    def to_dict(self) -> dict[str, Any]:
        """Returns the resolved recipe as plain JSON values, as the manifest and MLflow record it."""
        resolved: dict[str, Any] = pydantic.TypeAdapter(Recipe).dump_python(self, mode="json")
        return resolved


def load(path: Path, *, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe and applies overrides on top of it.

    Args:
      path: The YAML file.
      overrides: Dotted key to value, such as `{"train.epochs": 3}`; they win over the file.

    Raises:
      UsageError: The file is missing or is no YAML mapping, a key is unknown, or a value has the wrong type.
    """
    values = _read(path)
    section = values.get("pipeline")
    if isinstance(section, dict) and isinstance(schema := section.get("schema"), str):
        section["schema"] = str(path.parent / schema)
    return from_values(values, overrides=overrides, where=str(path))


def from_values(values: dict[str, Any], *, overrides: Mapping[str, Any] | None = None, where: str) -> Recipe:
    """Builds a recipe from plain values; `where` they come from begins an error's text.

    Raises:
      UsageError: As `load`.
    """
    for key, value in (overrides or {}).items():
        _assign(values, key, value)
    try:
        return pydantic.TypeAdapter(Recipe).validate_python(values)
    except pydantic.ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits `key=value`, the value read as YAML: `train.epochs=3` is `("train.epochs", 3)`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {text!r}: write KEY=VALUE, such as --set train.epochs=3")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {text!r}: the value is not YAML") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = sorted(str(p) for p in path.parent.glob("*.yaml")) or sorted(
            str(p) for p in Path("recipes").glob("*.yaml")
        )
        there = f"; there are: {', '.join(beside)}" if beside else ""
        raise UsageError(f"no recipe {str(path)!r}{there}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {str(path)!r}: {error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping with the keys name, data and model")
    return values


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place = values
    for section in sections:
        inner = place.get(section)
        if inner is None:
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise UsageError(f"{key}: {section} is a value, not a section")
        place = inner
    place[last] = value


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        allowed = _allowed_keys([str(part) for part in first["loc"][:-1]])
        key = str(first["loc"][-1])
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown key {where}; {hint}allowed: {', '.join(allowed)}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"{where} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where}: {message[:1].lower()}{message[1:]}, given {first['input']!r}"


def _allowed_keys(sections: list[str]) -> list[str]:
    kind: Any = Recipe
    for section in sections:
        kind = typing.get_type_hints(kind).get(section, kind)
        for choice in typing.get_args(kind):
            if dataclasses.is_dataclass(choice):
                kind = choice
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
