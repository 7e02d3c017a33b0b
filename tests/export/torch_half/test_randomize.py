"""Random weights under which numbers mean something, and the choice of a family's smallest variant."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from isthmus.export.errors import ExportError
from isthmus.export.parity import spread
from isthmus.export.torch_half import zoo
from isthmus.export.torch_half.randomize import WELL_CONDITIONED, _draw_constants, randomize

IMAGES = np.random.default_rng(0).normal(size=(6, 3, 64, 64)).astype(np.float32)


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_no_branch_is_switched_off_and_rounding_stays_small(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    done = randomize(model, IMAGES)
    # Single gains are constant by nature.
    constant = [
        key
        for key, value in model.named_parameters()
        if value.numel() > 1 and float(value.detach().std()) == 0
    ]
    assert constant == []
    assert done.conditioning is not None
    assert done.conditioning <= WELL_CONDITIONED
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert float(module.running_var.std()) > 0
            assert not module.training
            assert module.momentum is not None
    with torch.inference_mode():
        logits = model(torch.from_numpy(IMAGES)).numpy()
    assert 1e-4 < spread(logits) < 1e3


def test_a_head_that_starts_a_thousand_times_smaller_answers_each_image_its_own_way() -> None:
    """timm's EVA: with such a head the bias decides, and rounding it costs more than images differ by."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch16_rope_224", num_classes=10, img_size=64, depth=2, embed_dim=64, num_heads=2
    ).eval()
    done = randomize(model, IMAGES)
    with torch.inference_mode():
        logits = model(torch.from_numpy(IMAGES)).numpy()
    assert spread(logits) > 0.01
    assert done.conditioning is not None
    assert done.conditioning < WELL_CONDITIONED / 2


@pytest.mark.parametrize(("shift", "largest"), [(0.0, 1.4), (0.5, 0.7)])
def test_queries_of_undivided_attention_are_halved_in_a_net_drawn_nearer(
    shift: float, largest: float
) -> None:
    """gemma4_vit normalises queries and keys, and does not divide their products by the root of the head's size."""
    model = timm.create_model("gemma4_vit_167m", num_classes=10, depth=1).eval()
    with torch.no_grad():
        _draw_constants(model, torch.Generator().manual_seed(0), shift)
    gains = torch.cat([value for name, value in model.named_parameters() if name.endswith("q_norm.weight")])
    assert 0.9 * largest < float(gains.detach().max()) <= largest


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", num_classes=10).eval()
        randomize(model, IMAGES)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_module_of_timm_is_a_family() -> None:
    families = zoo.families()
    assert len(families) >= 98
    assert {"vision_transformer", "swin_transformer", "maxvit", "coatnet", "convnext"} <= set(families)
    assert "maxxvit" not in families


def test_the_smallest_real_variant_is_chosen_and_the_choice_recorded() -> None:
    choice = zoo.choose("starnet", num_classes=10)
    assert (choice.model, choice.num_built, choice.num_variants) == ("starnet_s050", 7, 7)
    assert zoo.choose("resnet10t", num_classes=10).model == "resnet10t"
    with pytest.raises(ExportError, match="timm has neither a module nor a model 'no_such'"):
        zoo.choose("no_such", num_classes=10)


def test_a_family_without_a_small_variant_is_built_shallower_and_an_encoder_is_no_classifier() -> None:
    large = zoo.choose("deepseek_vit", num_classes=10)
    assert large.args == {"depth": 4}
    assert large.num_parameters < 100_000_000
    assert not zoo.choose("gemma4_vit", num_classes=10).model.endswith("_enc")
    assert zoo.choose("starnet", num_classes=10).args == {}
