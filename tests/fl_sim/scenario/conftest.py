"""A scenario with something in every section."""

from __future__ import annotations

from pathlib import Path

import pytest

DESIGN = """
seed = 7
rounds = 10
device = "cpu"
[data]
name = "mnist-5k"
clients = 10
[client]
lr = 1
[[defense]]
name = "label-smoothing"
smoothing = [0, 0.5]
[[defense]]
name = "mixup"
[[attack]]
label = "soft-label"
image = "analytic"
attacker = "aware"
rounds = { every = 5 }
clients = [0, 3]
[[attack]]
label = "idlg"
rounds = [1, 2]
"""


@pytest.fixture
def design(tmp_path: Path) -> Path:
    """Return the file of a scenario."""
    path = tmp_path / "quick.toml"
    path.write_text(DESIGN, encoding="utf-8")
    return path
