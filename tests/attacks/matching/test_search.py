"""The parts of the search: optimisers, schedules, stops, and the best of each start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.matching.optimisers import LBFGS, Adam, Optimiser
from attacks.matching.schedules import Constant, CosineDecay, Schedule, StepDecay
from attacks.matching.search import Best, Found, Stop, search

SCALES = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
START = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, -4.0]], dtype=torch.float64)


def bowl(rows: Tensor) -> tuple[Tensor, Tensor]:
    return (SCALES * rows.square()).sum(dim=1) / 2, SCALES * rows


def run(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    stop: Stop,
    optimiser: Optimiser | None = None,
    schedule: Schedule | None = None,
) -> Found:
    return search(
        evaluate,
        START,
        optimiser=optimiser or LBFGS(),
        schedule=schedule or Constant(1.0),
        stop=stop,
        project=lambda rows: rows,
    )


@pytest.mark.parametrize("row", [0, 1])
def test_rows_are_moved_as_pytorch_moves_one(row: int) -> None:
    """Together or alone, by L-BFGS and by Adam."""
    own: dict[str, Tensor] = {}
    for name, ours in {"adam": Adam("no"), "lbfgs": LBFGS(memory=5)}.items():
        rows, state = START, ours.start(START)
        for _ in range(8):
            rows, state = ours.step(rows, bowl(rows)[1], state, 0.1)
        own[name] = rows[row]
    for name, built in {
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
        "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1, history_size=5),
    }.items():
        parameter = START[row].clone().requires_grad_()
        optimizer = built([parameter])

        def closure() -> Tensor:
            loss, gradient = bowl(parameter.detach()[None])  # noqa: B023
            parameter.grad = gradient[0]  # noqa: B023
            return loss[0]

        for _ in range(8):
            optimizer.step(closure)
        torch.testing.assert_close(own[name], parameter.detach(), rtol=1e-9, atol=1e-12)


def test_signed_adam_takes_no_notice_of_size() -> None:
    gradient = torch.tensor([[3.0, -1e-3, 0.0]])
    for signed, expected in (("hard", [-0.1, 0.1, 0.0]), ("soft", None)):
        moved, _ = Adam(signed).step(  # type: ignore[arg-type]
            torch.zeros(1, 3), gradient, Adam().start(gradient), 0.1
        )
        if expected is not None:
            torch.testing.assert_close(moved, torch.tensor([expected]))
        again, _ = Adam(signed).step(  # type: ignore[arg-type]
            torch.zeros(1, 3), 1e3 * gradient, Adam().start(gradient), 0.1
        )
        torch.testing.assert_close(moved, again, rtol=1e-4, atol=1e-6)


def test_step_lengths() -> None:
    steps = [StepDecay(0.1).rate(step, 80) for step in (0, 29, 30, 49, 50, 69, 70, 79)]
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert StepDecay(0.1).settles(80) == 70
    assert CosineDecay(0.1).rate(0, 10) == 0.1
    assert CosineDecay(0.1).rate(5, 10) == pytest.approx(0.05)
    assert CosineDecay(0.1).settles(10) == 10
    assert (Constant(2.0).rate(7, 10), Constant(2.0).settles(10)) == (2.0, 0)


def test_a_budget_ends_a_search_with_the_best_so_far() -> None:
    found = run(bowl, stop=Stop(5), optimiser=Adam("no"), schedule=Constant(50.0))
    assert found.evaluations == 10
    assert found.ended == "the budget"
    # Steps of 50 lead away: the best is the start.
    assert torch.equal(found.rows, START)
    assert torch.equal(found.losses, bowl(START)[0])


def test_a_plateau_ends_a_search_but_not_before_steps_are_short() -> None:

    def floored(rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = bowl(rows)
        return loss + 1, gradient

    flat = run(floored, stop=Stop(1000, patience=20))
    assert flat.ended == "as nothing got better"
    assert flat.evaluations < 200
    assert float(flat.losses.max()) < 1 + 1e-6
    waiting = run(bowl, stop=Stop(160, patience=5), schedule=StepDecay(1.0))
    assert waiting.evaluations >= 2 * 140


def test_seconds_end_a_search() -> None:
    found = run(bowl, stop=Stop(10**9, patience=10**9, seconds=0.05))
    assert found.ended == "as 0.05 seconds were over"


def test_a_row_without_a_finite_loss_stays_and_the_others_go_on() -> None:
    def broken(rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = bowl(rows)
        return torch.where(torch.tensor([True, False]), torch.nan, loss), gradient

    found = run(broken, stop=Stop(50))
    assert found.losses[0] == torch.inf
    assert found.rows[0].isnan().all()
    assert float(found.losses[1]) < 1e-9
    lost = run(lambda rows: (rows.sum(dim=1) * torch.nan, rows), stop=Stop(50))
    assert lost.ended == "as no start has a finite loss any more"
    assert lost.evaluations == 2


def test_the_best_is_kept_row_by_row() -> None:
    best = Best.none(START).met(START, torch.tensor([1.0, torch.nan]).double())
    best = best.met(2 * START, torch.tensor([2.0, 3.0]).double())
    assert best.losses.tolist() == [1.0, 3.0]
    assert torch.equal(best.rows, torch.stack([START[0], 2 * START[1]]))
