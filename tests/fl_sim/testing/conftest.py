"""How a check fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fl_sim.testing import ConformanceError

Fails = Callable[..., None]
KINDS = "label attack|image attack|defense|model|dataset"


@pytest.fixture
def fails() -> Fails:
    """Return a function that demands one sentence with the rule's name and what was found."""

    def demand(
        check: Callable[..., None], *plugin: Any, rule: str, words: str, **options: Any
    ) -> None:
        with pytest.raises(ConformanceError) as caught:
            check(*plugin, **options)
        message = str(caught.value)
        assert re.match(rf"({KINDS}) \S+ must be {rule}: ", message)
        assert words in message
        assert "\n" not in message

    return demand
