"""The benchmark of images: what a row says, and that failures stay in it."""

from __future__ import annotations

import math

import pytest
import torch

from attacks import Status
from fl_sim.bench import image_batches
from fl_sim.bench.image_batches import Outcome, Setting, attack_batch, settings


def test_settings_cover_sources_batches_and_updates() -> None:
    quick, full = (list(settings(quick=quick)) for quick in (True, False))
    assert len(set(quick)) == len(quick) < 20 < len(set(full)) == len(full)
    assert {s.batch for s in full} == {1, 8, 16, 32, 64}
    assert {(s.init, s.is_trained) for s in full} == {
        (init, is_trained) for init in ("default", "he") for is_trained in (False, True)
    }
    assert {s.bias for s in full} == {False, True}


@pytest.mark.parametrize("sent_as", ["float32", "update"])
def test_given_labels_give_exact_images(sent_as: image_batches.SentAs) -> None:
    outcome = attack_batch(Setting("mnist-5k", 8, sent_as, labels="given"), 0)
    assert outcome.claimed.all()
    assert outcome.psnr.min() > 100  # the figure asked for; measured: 140
    assert outcome.mean_image.max() < 20
    # Seeds decide all but the seconds.
    again = attack_batch(Setting("mnist-5k", 8, sent_as, labels="given"), 0)
    assert torch.equal(again.images, outcome.images)


def test_a_row_counts_failures() -> None:
    """An image that wasn't recovered is worse than any; a claim on it is a false one."""
    outcome = Outcome(
        images=torch.zeros(4, 1, 2, 2),
        truth=torch.zeros(4, 1, 2, 2),
        psnr=torch.tensor([60.0, 40.0, -math.inf, -math.inf]),
        claimed=torch.tensor([True, True, False, False]),
        mean_image=torch.full((4,), 11.0),
        label_error=1e-3,
        label_seconds=0.1,
        seconds=0.2,
    )
    row = image_batches._row(Setting("mnist-5k", 4, "update"), [outcome])
    assert row["psnr_worst_db"] == -math.inf
    assert (row["images"], row["recovered"], row["false_accepts"]) == (4, 2, 1)
    assert (row["mean_image_db"], row["seeds"]) == (11.0, 1)


def test_rows_are_flat_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [Setting("mnist-5k", batch, "float32", bias=True, labels="given") for batch in (2, 3)]
    monkeypatch.setattr(image_batches, "settings", lambda *, quick: iter(few))
    table = list(image_batches.rows(quick=True, seed=0))
    assert [row["batch"] for row in table] == [2, 3]
    assert table[0].keys() == table[1].keys()
    assert all(isinstance(value, str | int | float | bool) for value in table[0].values())
    [axes] = image_batches.figure([row | {"batch": 8} for row in table]).axes
    assert [len(line.get_xdata()) for line in axes.lines[:1]] == [2]


def test_pictures_show_recovered_and_original_images() -> None:
    figure = image_batches.pictures(Setting("mnist-5k", 3, "float32", labels="given"), 0, most=2)
    assert len(figure.axes) == 4


def test_a_recovery_without_labels_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def __call__(self, leak: object, *, generator: object) -> image_batches.LabelRecovery:
            return image_batches.LabelRecovery(Status.NOT_APPLICABLE, "never")

    monkeypatch.setattr(image_batches.LABEL_ATTACKS, "build", lambda name: Never())
    outcome = attack_batch(Setting("mnist-5k", 4, "float32"), 0)
    assert not outcome.claimed.any()
    assert (outcome.psnr == -torch.inf).all()
    assert outcome.label_error == math.inf
