"""Rounding to 4 bits by a layer's inputs: what it gives stays near, whatever its weights do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fresco_trt.models.difference import added
from training.rounding import Inputs, recorded, rounded_difference

ROWS = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


def layer_and_inputs() -> tuple[nn.Module, torch.Tensor]:
    """A linear layer, and what it is given: eight directions of 32, off zero."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 16)), ROWS @ torch.randn(8, 32) + torch.randn(32)


@torch.no_grad()
def error(model: nn.Module, rows: torch.Tensor, inputs: Mapping[str, Inputs]) -> torch.Tensor:
    """What becomes of the layer's outputs [N,16] once its weights are stored."""
    weights = model.state_dict()
    base = {name: torch.zeros_like(value) for name, value in weights.items()}
    wanted = model(rows)
    model.load_state_dict(added(base, rounded_difference(weights, base, inputs)))
    found: torch.Tensor = model(rows) - wanted
    return found


def test_outputs_stay_nearer_than_by_the_nearest_codes_and_right_on_average() -> None:
    model, rows = layer_and_inputs()
    with recorded(model) as inputs:
        model(rows)
    rounded = error(model, rows, inputs)
    nearest = error(layer_and_inputs()[0], rows, {})
    assert rounded.square().mean() < nearest.square().mean() / 4
    assert rounded.mean(0).abs().max() < 2e-3 < nearest.mean(0).abs().max()


def test_inputs_add_up_over_calls_and_end_with_the_scope() -> None:
    model, rows = layer_and_inputs()
    with recorded(model) as inputs:
        for part in rows.split(150):
            model(part)
    model(rows)
    (seen,) = inputs.values()
    assert inputs.keys() == {"0.weight"}
    assert seen.count == len(rows)
    torch.testing.assert_close(seen.mean.float(), rows.mean(0), atol=1e-5, rtol=1e-5)


def test_a_layer_whose_input_never_varies_gives_what_it_gave() -> None:
    model, _ = layer_and_inputs()
    rows = torch.linspace(-1, 1, 32).expand(5, 32)
    with recorded(model) as inputs:
        model(rows)
    assert error(model, rows, inputs).abs().max() < 2e-3
