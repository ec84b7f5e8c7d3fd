"""The types of leak and answer: what they refuse, and the rounding of a weight update."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import ExampleLabel, GradientLeak, ImageAttack, LabelAttack, LabelRecovery, Status
from attacks.answers import Reconstruction
from attacks.training import SGD
from attacks.types import NotApplicable
from attacks.victim.network import Network
from attacks.victim.require import require_one_example


def linear(weight: Tensor) -> nn.Linear:
    """A bias-free layer with the given weight, built without a draw."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def make_leak(**changes: Any) -> GradientLeak:
    values: dict[str, Any] = {
        "model": linear(torch.ones(2, 3)),
        "gradients": {"weight": torch.ones(2, 3)},
        "batch_size": 1,
        "input_shape": (3, 1, 1),
    }
    return GradientLeak(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gradients": {"head": torch.ones(2, 3)}}, "gradient 'head' belongs to no parameter"),
        (
            {"gradients": {"weight": torch.ones(3, 2)}},
            r"gradient 'weight' must have the shape \(2, 3\) .* found \(3, 2\)",
        ),
        ({"gradients": {"weight": torch.ones(2, 3).long()}}, "must be floating, found torch.int64"),
        ({"batch_size": 0}, "batch_size must be at least 1 or None, found 0"),
        ({"input_shape": (3, 1)}, r"input_shape must be \(C, H, W\), each at least 1, found"),
        ({"input_shape": (0, 1, 1)}, "input_shape must be"),
        ({"local_steps": 0}, "local_steps must be at least 1, found 0"),
        ({"lr": 0.0}, "lr must be above 0 and finite, or None, found 0.0"),
        ({"lr": float("nan")}, "lr must be above 0 and finite, or None, found nan"),
        ({"update_dtype": torch.float32}, "a weight update needs its lr, above 0, found None"),
        ({"mode": "test"}, "mode must be 'eval' or 'train', found 'test'"),
        ({"examples": 0}, "examples must be a whole number of at least 1 or None, found 0"),
        ({"examples": 2}, "examples must be at most batch_size × local_steps, 1 × 1, found 2"),
        ({"schedule": "shuffled"}, "schedule must be 'full-batch', .* found 'shuffled'"),
        ({"momentum": -0.5}, r"momentum must be in \[0, 1\), found -0.5"),
        ({"nesterov": True}, "nesterov needs a momentum above 0"),
        ({"dampening": 0.5}, "dampening is the momentum's, found 0.5"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, found -1.0"),
        ({"optimizer_lr": 0.0}, "optimizer_lr must be above 0 and finite, or None, found 0.0"),
    ],
)
def test_a_leak_refuses_what_does_not_fit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_leak(**changes)


def test_a_leak_may_leave_things_unknown() -> None:
    leak = make_leak(batch_size=None, gradients={})
    assert leak.batch_size is None
    assert leak.knowledge == ()


def test_a_schedule_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="schedule must be one tuple of example numbers"):
        make_leak(schedule=[[0]])


def test_a_leak_counts_the_examples_of_all_steps() -> None:
    epochs = {"local_steps": 6, "batch_size": 4, "examples": 10, "schedule": "epochs"}
    assert make_leak(**epochs).processed == 20
    assert make_leak(local_steps=6, batch_size=4).processed == 24
    assert make_leak(batch_size=None).processed is None


def test_the_optimizer_is_the_one_that_the_clients_were_told() -> None:
    told = {"momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125}
    assert make_leak(lr=0.1, **told).optimizer == SGD(0.1, **told)
    assert make_leak(lr=0.1, optimizer_lr=0.3, **told).optimizer == SGD(0.3, **told)
    assert make_leak(**told).optimizer is None


def test_weights_that_did_not_come_back_are_not_given() -> None:
    for changes in ({}, {"lr": 0.1, "keeps": "signs"}):
        with pytest.raises(ValueError, match="weights that came back are known of a weight update"):
            make_leak(**changes).returned("weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [1.0, 0.0], ids=["weights near 1", "weights at zero"])
def test_rounding_is_the_error_of_a_weight_update(dtype: torch.dtype, start: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shape, lr = (100, 200), 0.125
    weight = (start * (1 + torch.rand(shape, generator=generator))).to(dtype)
    gradient = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    returned = (weight.double() - lr * gradient).to(dtype)
    received = (weight.double() - returned.double()) / lr
    leak = make_leak(
        model=linear(weight), gradients={"weight": received}, lr=lr, update_dtype=dtype
    )
    standard = (received - gradient) / leak.rounding("weight")
    # Uniform errors of the stated size have rms 1, known to 0.3 % from 20,000 of them; where
    # w − lr·g is in the binade below w the ulp is half as large, which lowers it by some per cent.
    assert 0.9 < standard.square().mean().sqrt() < 1.01
    assert standard.abs().max() < 1.01 * 3**0.5  # a uniform variable ends at √3 deviations


def test_rounding_of_a_gradient_sent_as_such_is_relative() -> None:
    leak = make_leak(gradients={"weight": torch.tensor([[1.0, -2.0, 0.0]] * 2)})
    assert torch.equal(
        leak.rounding("weight")[0],
        torch.tensor([1.0, 2.0, 0.0]).double() * torch.finfo(torch.float32).eps,
    )


def test_rounding_is_never_zero_in_a_weight_update() -> None:
    zeros = torch.zeros(2, 3)
    for dtype in (torch.float32, torch.float16):
        leak = make_leak(
            model=linear(zeros), gradients={"weight": zeros.double()}, lr=1.0, update_dtype=dtype
        )
        assert (leak.rounding("weight") > 0).all()


class _Refuses(LabelAttack):
    def recover(self, leak: GradientLeak, generator: torch.Generator) -> LabelRecovery:
        require_one_example(leak)
        return LabelRecovery.of([ExampleLabel(Status.RECOVERED, label=torch.ones(2).double())])


class _RefusesImages(ImageAttack):
    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        raise NotApplicable("there is no image here")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": 2}, "the batch has 2 examples; this attack works on one"),
        (
            {"local_steps": 3},
            "the update sums 3 local steps; this attack needs the gradient of one",
        ),
        ({}, None),
        ({"batch_size": None}, None),
    ],
)
def test_not_applicable_is_an_answer(changes: dict[str, Any], reason: str | None) -> None:
    answer = _Refuses()(make_leak(**changes), generator=torch.Generator())
    assert answer.status == ("NOT_APPLICABLE" if reason else "RECOVERED")
    assert answer.reason == reason


def test_not_applicable_is_an_answer_for_images() -> None:
    labels = LabelRecovery(Status.FAILED, "it failed")
    answer = _RefusesImages()(make_leak(), labels, generator=torch.Generator())
    assert answer.status is Status.NOT_APPLICABLE
    assert (answer.reason, answer.images) == ("there is no image here", None)


def test_an_input_shape_that_the_model_refuses_is_named() -> None:
    leak = make_leak(model=nn.Sequential(nn.Flatten(), linear(torch.ones(2, 3))), gradients={})
    with pytest.raises(NotApplicable, match=r"doesn't take an image of input_shape \(1, 2, 2\): "):
        Network(dataclasses.replace(leak, input_shape=(1, 2, 2)))
