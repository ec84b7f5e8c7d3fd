"""What networks are made of."""

from __future__ import annotations

import pytest

from fl_sim.models import Normalize


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2), (1.0,)), ((0.1,), (0.0,))])
def test_normalize_refuses(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="std above 0, found"):
        Normalize(mean, std)
