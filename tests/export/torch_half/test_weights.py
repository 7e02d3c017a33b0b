"""State dicts from anywhere: unwrapped, never executed, and held against the model key by key."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isthmus.export.errors import ExportError
from isthmus.export.torch_half.weights import load_into, num_classes, read_state_dict


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5))


@pytest.mark.parametrize(
    ("wrap", "wrapper"),
    [
        (lambda state: state, None),
        (lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "state_dict"),
        (lambda state: {"state_dict": {}, "state_dict_ema": state}, "state_dict_ema"),
        (lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}, "model"),
        (lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()}, None),
        (lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()}, None),
    ],
)
def test_wrappers_of_training_programs_come_off(wrap: Any, wrapper: str | None, tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    found, lay_in = read_state_dict(tmp_path / "weights.pth")
    assert lay_in == wrapper
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_safetensors_are_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "a.safetensors")
    assert read_state_dict(tmp_path / "a.safetensors")[0].keys() == net().state_dict().keys()
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"b\.safetensors is not a readable safetensors file: "):
        read_state_dict(tmp_path / "b.safetensors")
    (tmp_path / "c.pth").write_bytes(b"no weights at all")
    with pytest.raises(ExportError, match=r"c\.pth is not a file of torch\.save: "):
        read_state_dict(tmp_path / "c.pth")


class Trap:
    """Unpickled by an ordinary unpickler, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": net().state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    with pytest.raises(ExportError, match=r"isthmus runs no code from a file: save model\.state_dict"):
        read_state_dict(tmp_path / "evil.pth")
    torch.save(net(), tmp_path / "whole.pth")
    with pytest.raises(ExportError, match="holds Python objects, not only tensors"):
        read_state_dict(tmp_path / "whole.pth")
    assert not (tmp_path / "sprung").exists()


def test_what_does_not_fit_is_counted_and_named_on_one_line(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["extra.weight"] = torch.zeros(1)
    state["2.weight"] = torch.zeros(7, 4)
    del state["0.bias"], state["1.bias"], state["1.weight"], state["1.running_mean"]
    with pytest.raises(ExportError) as caught:
        load_into(net(), state, file=tmp_path / "w.pth", called="net")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pth'} does not fit net: 4 of its 9 tensors missing (0.bias, 1.weight, 1.bias, …); "
        "1 not the model's (extra.weight); 1 of another shape (2.weight [7, 4] instead of [5, 4])"
    )


def test_the_number_of_classes_is_the_classifiers() -> None:
    state = {"head.fc.weight": torch.zeros(7, 4), "head_dist.bias": torch.zeros(7)}
    assert num_classes(state, "head.fc") == 7
    assert num_classes(state, ("head", "head_dist")) == 7
    assert num_classes(state, "classifier") is None


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_features_without_a_classifier_say_so(tmp_path: Path, name: str) -> None:
    import timm

    model = timm.create_model(name, num_classes=5)
    features = timm.create_model(name, num_classes=0).state_dict()
    with pytest.raises(
        ExportError,
        match=rf"does not fit {name}: the classifier is missing .*isthmus train with model.weights",
    ):
        load_into(model, features, file=tmp_path / "w.pth", called=name)
