"""An attack knows what is on the wire, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from fl_sim.testing.rules import difference

Build = Callable[..., Any]


@pytest.mark.parametrize("image_name", list(IMAGE_ATTACKS))
@pytest.mark.parametrize("label_name", list(LABEL_ATTACKS))
def test_a_leak_that_went_through_bytes_gives_the_same_answer(
    label_name: str,
    image_name: str,
    make_model: Build,
    make_label: Build,
    make_victim: Build,
    short_options: Build,
) -> None:
    """No label, activation or hook of the victim rides along."""
    label = make_label(10, "label-smoothing", np.random.default_rng(1))
    victim = make_victim(make_model(10, bias=label_name == "bias-ratio"), label)
    weights = load(save(victim.leak.model.state_dict()))
    model = make_model(10, bias=label_name == "bias-ratio", seed=99)
    model.load_state_dict(weights)
    gradients = load(save({k: g.contiguous() for k, g in victim.leak.gradients.items()}))
    rebuilt = dataclasses.replace(victim.leak, model=model, gradients=gradients)

    answers = []
    for leak in (victim.leak, rebuilt):
        labels = LABEL_ATTACKS.build(label_name)(leak, generator=torch.Generator().manual_seed(1))
        attack = IMAGE_ATTACKS.build(image_name, **short_options(image_name))
        image = attack(leak, labels, generator=torch.Generator().manual_seed(2))
        answers.append((labels, image))
    (labels, image), (other_labels, other_image) = answers
    assert difference(labels, other_labels) is None
    assert difference(image, other_image) is None
