"""The first changes that anyone makes: every scenario at every batch size, on all there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_sim import DATASETS, MODELS
from fl_sim.flower.run import run
from fl_sim.leakage.records import read_lines
from fl_sim.scenario import Scenario

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("[!r]*.toml"))
"""All but `resnet`, whose attack searches for minutes."""
BATCH_SIZES = (2, 4, 8, 9, 16, 32)
DOWNLOADED = ("mnist", "fashion-mnist", "cifar10", "cifar100", "flowers102")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise images in six classes."""
    root: Path = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for name in "abcdef":
        (root / name).mkdir()
        for number in range(64):
            pixels = draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("moves_generators")  # torchvision's resize asks for a seed
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_no_attack_fails_nor_claims_what_is_not_so(
    scenario: Path, model: str, folder: Path, tmp_path: Path
) -> None:
    for data in set(DATASETS) - set(DOWNLOADED):
        for size in BATCH_SIZES:
            changes = [f"client.batch_size={size}", f"data.name={data}", f"model.name={model}"]
            changes += ["rounds=2", "data.clients=2", "data.test_examples=40", "images=0"]
            if data == "image-folder":
                changes.append(f'data.options={{root="{folder}"}}')
            place = tmp_path / f"{data}-{size}"
            run(Scenario.load(scenario, changes), place)
            records = read_lines(place / "leakage.jsonl")
            assert records
            for record in records:
                assert record["attack"] is not None, record["label_reason"]
                assert record["label_status"] != "FAILED", (data, size, record["label_reason"])
                assert record["image_status"] != "FAILED", (data, size, record["image_reason"])
                if record["label_status"] == "RECOVERED":
                    assert record["label_linf"] < 1e-2, (data, size)
                if record["image_status"] == "RECOVERED":
                    assert record["psnr_db"] >= 50, (data, size)
