"""What timm refuses is one line, and what the recipe says of preprocessing wins over what timm knows."""

from __future__ import annotations

import pytest
import torch

from isthmus.training.config import ModelConfig
from isthmus.training.errors import TrainingError
from isthmus.training.model import check_name, create_model, data_config, model_args


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ModelConfig(name="resnet81"), "has no model 'resnet81'; nearest: resnet"),
        (ModelConfig(name="qqqq"), "has no model 'qqqq'; timm.list_models() has them all"),
        (ModelConfig(name="resnet18.nonsense"), "resnet18 has no pretrained tag 'nonsense'; it has "),
        (
            ModelConfig(name="test_resnet", args={"no_such": 1}, input_size=(3, 32, 32)),
            "timm cannot build test_resnet with model.args {'no_such': 1}: ",
        ),
        (ModelConfig(name="test_resnet", input_size=(1, 32, 32)), "channels are 3, images are opened as RGB"),
        (
            ModelConfig(name="test_vit", input_size=(3, 33, 33)),
            "test_vit",
        ),
    ],
)
def test_what_timm_cannot_build_is_one_line(config: ModelConfig, text: str) -> None:
    with pytest.raises(TrainingError) as caught:
        create_model(config, num_classes=3)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_with_a_tag_is_known() -> None:
    check_name("resnet18.a1_in1k")


def test_a_vit_is_built_for_the_size_that_is_asked_for() -> None:
    config = ModelConfig(name="test_vit", input_size=(3, 64, 64))
    assert model_args(config) == {"img_size": [64, 64]}
    model = create_model(config, num_classes=5).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_preprocessing_is_timms_except_where_the_recipe_speaks() -> None:
    config = ModelConfig(name="test_resnet", input_size=(3, 32, 32), crop_pct=1.0, interpolation="bicubic")
    model = create_model(config, num_classes=5)
    assert data_config(model, config) == {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
