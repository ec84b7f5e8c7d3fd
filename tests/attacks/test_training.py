"""What is told of a client's training: its SGD, and the batches of its steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attacks.training import SGD, Steps


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.5, "dampening": 0.2, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_the_linear_map_is_pytorchs_sgd_on_a_constant_gradient(
    options: dict[str, Any], steps: int
) -> None:
    start, gradient = 1.7, -0.6
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, **options)
    for _ in range(steps):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    kept, reach = SGD(0.1, **options).linear_map(steps)
    # Some float64 roundings of numbers of about 1.
    assert kept * start - reach * gradient == pytest.approx(float(weight.detach()), abs=1e-14)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0.0}, "lr must be above 0 and finite, found 0.0"),
        ({"lr": math.inf}, "lr must be above 0 and finite, found inf"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), found -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), found 1.0"),
        ({"momentum": 0.5, "dampening": 1.5}, r"dampening must be in \[0, 1\], found 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, found -1.0"),
        ({"dampening": 0.5}, "dampening is the momentum's, found 0.5 and a momentum of 0"),
        ({"nesterov": True}, "nesterov needs a momentum above 0 and no dampening, found 0 and 0"),
    ],
)
def test_an_impossible_sgd_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SGD(**{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("told", "sizes", "distinct"),
    [
        ({}, None, None),
        ({"batch_size": 4}, (4,), 4),
        ({"batch_size": 4, "local_steps": 3}, (4, 4, 4), None),
        ({"batch_size": 4, "local_steps": 3, "schedule": "steps"}, (4, 4, 4), None),
        ({"batch_size": 4, "local_steps": 2, "examples": 4, "schedule": "full-batch"}, (4, 4), 4),
        ({"local_steps": 2, "examples": 4, "schedule": "full-batch"}, (4, 4), 4),
        (
            {"batch_size": 4, "local_steps": 6, "examples": 10, "schedule": "epochs"},
            (4, 4, 2, 4, 4, 2),
            10,
        ),
        (
            {"batch_size": 5, "local_steps": 2, "examples": 10, "schedule": "epochs"},
            (5, 5),
            10,
        ),
        ({"batch_size": 4, "local_steps": 6, "schedule": "epochs"}, None, None),
        ({"local_steps": 6, "examples": 10, "schedule": "epochs"}, None, 10),
        ({"local_steps": 2, "examples": 3, "schedule": ((0, 2), (1,))}, (2, 1), 3),
    ],
    ids=str,
)
def test_batches_follow_from_what_is_told(
    told: dict[str, Any], sizes: tuple[int, ...] | None, distinct: int | None
) -> None:
    steps = Steps(**told)
    assert steps.batch_sizes == sizes
    assert steps.distinct == distinct


EPOCHS = {"schedule": "epochs", "batch_size": 4, "examples": 10}
BATCHES = {"schedule": ((0, 1), (2,)), "local_steps": 2, "examples": 3}


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 or None, found 0"),
        ({"local_steps": 0}, "local_steps must be at least 1, found 0"),
        ({"examples": 0}, "examples must be a whole number of at least 1 or None, found 0"),
        ({"examples": 2.5}, "examples must be a whole number of at least 1 or None, found 2.5"),
        (
            {"examples": 9, "batch_size": 4, "local_steps": 2},
            "examples must be at most batch_size × local_steps, 4 × 2, found 9",
        ),
        (
            {"schedule": "epoch"},
            "schedule must be 'full-batch', 'epochs', 'steps', a tuple of batches or None, found "
            "'epoch'",
        ),
        (
            EPOCHS | {"local_steps": 4},
            "schedule 'epochs' takes 3 steps for 10 examples in batches of 4: local_steps must be "
            "a multiple of that, found 4",
        ),
        (
            EPOCHS | {"batch_size": 11},
            "batch_size must be at most examples, found 11 and 10",
        ),
        (
            {"schedule": "full-batch", "batch_size": 4, "examples": 8, "local_steps": 2},
            "schedule 'full-batch' takes all examples in every step: batch_size must be examples, "
            "found 4 and 8",
        ),
        (BATCHES | {"local_steps": 3}, "one tuple .* for each step, 3 of them, found 2"),
        (BATCHES | {"schedule": ((0, 1, 2), ())}, "none empty and no number twice in one"),
        (BATCHES | {"schedule": ((0, 1), (2, 2))}, "none empty and no number twice in one"),
        (
            BATCHES | {"examples": None},
            "must name all of the examples 0 to examples - 1 and no other, found 3 from 0 to 2, "
            "and examples None",
        ),
        (BATCHES | {"examples": 4}, "found 3 from 0 to 2, and examples 4"),
        (BATCHES | {"schedule": ((0, 1), (3,))}, "found 3 from 0 to 3, and examples 3"),
        (
            BATCHES | {"batch_size": 3},
            "batch_size must be that of the schedule's largest batch, 2, or None, found 3",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Steps(**told)


@pytest.mark.parametrize("schedule", [[(0, 1), (2,)], ([0, 1], [2]), ((0, 1.0), (2,)), 3], ids=str)
def test_batches_are_tuples_of_whole_numbers(schedule: Any) -> None:
    with pytest.raises(TypeError, match="schedule must be one tuple of example numbers for each"):
        Steps(**{**BATCHES, "schedule": schedule})
