"""What is known of the unknowns where the steps ended."""

from __future__ import annotations

import torch

from attacks.unrolled.refine import Model, _spread
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.tangents import Directions


def test_what_the_equations_do_not_tell_is_not_called_known() -> None:
    """Two labels' entries that move the same residuals: their difference is free."""
    draws = torch.Generator().manual_seed(0)
    slope = 1e6 * torch.randn(400, 4, generator=draws)
    slope[:, 3] = slope[:, 2]
    ways = torch.eye(4, dtype=torch.float64)
    inputs, labels = torch.zeros(2, 1, 4).double(), torch.zeros(2, 1, 4).double()
    inputs[0, 0], inputs[1, 0], labels[0, 0], labels[1, 0] = ways
    start = Unknowns(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(1, 2))
    model = Model(start, Directions(inputs, labels, torch.zeros(1, 2, 4).double()))
    spread = _spread(model, torch.randn(400, generator=draws).double(), slope.double())
    assert spread.labels.min() > 1
    assert spread.inputs.max() < 1e-5
