"""A copied network is the one that `copy.deepcopy` returns, whatever it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_sim.copies import copy_model


class Odd(nn.Module):
    """A module with attributes of all sorts, a tied layer, and no second child."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.nothing: nn.Module | None = None
        self.register_module("absent", None)
        self.tied = self.first
        self.empty = nn.Sequential()
        self.stages = nn.ModuleList([nn.BatchNorm1d(4), nn.Dropout(0.5)])
        self.parts = [self.first, {"scale": torch.ones(2)}]
        self.notes: list[int] = []
        self.same_notes = self.notes
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.calls = 3

    def forward(self, images: Tensor) -> Tensor:
        """Pass on."""
        return self.tied(self.first(images))


class Counted(nn.Linear):
    """A layer that copies itself in its own way."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        """Leave a mark."""
        twin = Counted(self.in_features, self.out_features)
        twin.load_state_dict(self.state_dict())
        twin.mark = "copied"  # type: ignore[assignment]
        return twin


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return model.train()


BUILD: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "hooked": hooked,
    "own way": lambda: nn.Sequential(Counted(4, 4)),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8),
}


@pytest.fixture
def model(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        return BUILD[request.param]()


@pytest.mark.parametrize("model", BUILD, indirect=True)
def test_a_copy_is_that_of_deepcopy(model: nn.Module) -> None:
    with torch.random.fork_rng():
        found, expected = copy_model(model), copy.deepcopy(model)
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)
    names = [name for name, _ in expected.named_modules(remove_duplicate=False)]
    assert [name for name, _ in found.named_modules(remove_duplicate=False)] == names
    for own, theirs in zip(found.modules(), expected.modules(), strict=True):
        assert list(vars(own)) == list(vars(theirs))
        assert own.training == theirs.training
    for own_tensors, tensors in (
        (dict(found.named_parameters()), dict(model.named_parameters())),
        (dict(found.named_buffers()), dict(model.named_buffers())),
    ):
        assert own_tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(own_tensors[name], tensor)
            assert own_tensors[name].requires_grad == tensor.requires_grad
            assert own_tensors[name].data_ptr() != tensor.data_ptr()
    given = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    if not isinstance(model, nn.TransformerEncoderLayer):
        assert torch.equal(found(given), model(given))


@pytest.mark.parametrize("model", ["odd"], indirect=True)
def test_what_is_one_in_the_original_is_one_in_the_copy(model: Odd) -> None:
    twin: Any = copy_model(model)
    assert twin.tied is twin.first is twin.parts[0]
    assert twin.notes is twin.same_notes is not model.notes
    assert twin.parts[1]["scale"] is not model.parts[1]["scale"]  # type: ignore[index]
    assert twin.empty is not model.empty
    assert twin.absent is None
    twin.stages[0].running_mean += 1
    twin.notes.append(1)
    assert not model.stages[0].running_mean.any()  # type: ignore[union-attr, operator]
    assert model.notes == []


@pytest.mark.parametrize("model", ["own way"], indirect=True)
def test_a_module_that_copies_itself_does(model: nn.Sequential) -> None:
    with torch.random.fork_rng():
        twin: Any = copy_model(model)
    assert twin[0].mark == "copied"
