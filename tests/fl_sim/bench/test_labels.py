"""`fl-sim bench labels`: small parts of the benchmarks run, and their figures are right."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fl_sim.bench import label_clipping, label_noise, label_speed, label_training, labels
from fl_sim.bench.label_noise import _bound
from fl_sim.cli import app


def test_the_grid_has_a_row_for_each_cell_and_attack() -> None:
    found = list(itertools.islice(labels.rows(quick=True, seed=1), 8))
    assert len({(r["state"], r["bias"], r["augmentation"], r["attack"]) for r in found}) == 8
    ours = [r for r in found if r["attack"] == "soft-label"]
    assert all(r["L∞ < 1e-3"] == r["gradients"] == 50 for r in ours)
    # Without a bias, logits that hardly differ may leave one example's scale open.
    assert all(r["accepted"] + r["no answer"] == 50 and r["no answer"] <= 2 for r in ours)
    assert all(r["false"] == 0 for r in found)
    assert labels.figure(found).axes


def test_the_grid_has_both_initialisations() -> None:
    for is_trained in (False, True):
        cells = [c for c in labels.cells(quick=True) if c.is_trained is is_trained]
        assert {(cell.network, cell.init) for cell in cells} == {
            ("fcn4", "default"),
            ("fcn4", "he"),
            ("lenet", "default"),
            ("lenet", "dlg"),
        }


def test_the_bound_is_that_of_a_numerical_fisher_information() -> None:
    draws = np.random.default_rng(0)
    weight, x, sigma = draws.normal(size=(6, 4)), draws.uniform(size=4), 0.01
    label = np.full(6, 0.3 / 6)
    label[2] += 0.7

    def gradient(parameters: torch.Tensor) -> torch.Tensor:
        x, epsilon = parameters[:-1], parameters[-1]
        hard = torch.eye(6, dtype=torch.float64)[2]
        p = torch.softmax(torch.from_numpy(weight) @ x, dim=0)
        return torch.outer(p - (1 - epsilon) * hard - epsilon / 6, x).flatten()

    point = torch.tensor([*x, 0.3], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(gradient, point)
    information = jacobian.T @ jacobian / sigma**2
    epsilon_std = float(torch.linalg.inv(information)[-1, -1].sqrt())
    bound = _bound(weight, x, label, sigma)
    assert bound[2] == pytest.approx(epsilon_std * (1 - 1 / 6), rel=1e-9)
    assert bound[0] == pytest.approx(epsilon_std / 6, rel=1e-9)


def test_noise_leaves_errors_near_the_bound() -> None:
    """Twenty trials a row: the full figure is in docs/results."""
    found = list(label_noise.rows(quick=True, seed=0))
    for row in found:
        assert row["false accepts"] == 0
        assert float(str(row["maximum likelihood"])) <= float(str(row["one row"]))
        if int(str(row["L∞ < 1e-2"])) == row["trials"]:
            # The median of 20 ratios scatters by a quarter.
            assert float(str(row["of these, error over bound"])) < 2
    assert label_noise.figure(found).axes


def test_clipping_is_measured_by_its_factor() -> None:
    found = list(itertools.islice(label_clipping.rows(quick=True, seed=0), 4))
    assert [row["c"] for row in found] == ["1", "0.5–1", "0.1–0.5", "0.01–0.1"]
    assert sum(int(str(row["RECOVERED"])) for row in found) >= 76  # of 80
    assert all(row["false"] == 0 for row in found)
    assert label_clipping.figure(found).axes


def test_speed_is_a_ratio_on_the_same_gradients() -> None:
    row = next(label_speed.rows(quick=True, seed=0))
    ours, paper = float(str(row["soft-label ms"])), float(str(row["first stage ms"]))
    assert 0 < ours < paper
    assert float(str(row["ratio"])) == pytest.approx(paper / ours, abs=1)


def test_training_is_followed_over_rounds() -> None:
    found = list(itertools.islice(label_training.rows(quick=True, seed=0), 4))
    assert [row["rounds"] for row in found] == ["1", "2–5"] * 2
    assert [row["init"] for row in found] == ["default"] * 2 + ["he"] * 2
    assert all(row["L∞ < 1e-3"] == row["updates"] and row["false"] == 0 for row in found)
    assert [axes.get_title() for axes in label_training.figure(found).axes] == ["default", "he"]


def test_a_benchmark_is_run_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["bench", "labels", "--quick", "--only", "label_training", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "| fcn4 | no | default | label-smoothing | 1 |" in result.output
    with (tmp_path / "label_training.csv").open() as file:
        assert {(row["network"], row["init"]) for row in csv.DictReader(file)} == {
            ("fcn4", "default"),
            ("fcn4", "he"),
            ("lenet", "default"),
            ("lenet", "dlg"),
        }
    assert (tmp_path / "label_training.png").stat().st_size > 1000


def test_an_unknown_benchmark_is_a_mistake() -> None:
    result = CliRunner().invoke(app, ["bench", "labels", "--only", "speed"])
    assert result.exit_code == 2
    assert "--only must be one of labels's" in result.output
