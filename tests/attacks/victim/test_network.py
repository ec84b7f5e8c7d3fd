"""Models and gradients as users have them: each works, or one sentence says why not."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, GradientLeak, LabelRecovery, Reconstruction
from attacks.types import NotApplicable
from attacks.victim.network import Network
from fl_sim.testing import gradients_of

SHAPE = (1, 8, 8)
LABEL = torch.tensor([3])


def mlp(classes: int = 10, *end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes), *end)


class Viewed(nn.Module):
    """Gives its logits another view."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).view(-1, 10)


class Named(nn.Module):
    """Calls its layers by keyword, and changes nothing of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.reshape(self.head(input=self.body(input=x.flatten(1)).relu()), (len(x), 10))


class Attention(nn.Module):
    """Attends over an image's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


class Rows(nn.Module):
    """A linear layer on each row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(8, 6), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x[:, 0]).relu().flatten(1))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x.flatten(1)).relu())


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x.flatten(1)).relu())


class Pair(nn.Module):
    """Two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 10), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x.flatten(1)), self.two(x.flatten(1))


class Tokens(nn.Module):
    """Logits for each row of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, 0])


class Wrapped(nn.Module):
    """Holds a module under the name that torch.compile uses, with none of its costs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the wrapper runs")


@pytest.fixture(autouse=True)
def _own_draws() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def image(seed: int = 0) -> Tensor:
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def own_gradients(
    model: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy
) -> dict[str, Tensor]:
    return gradients_of(model, image(), LABEL, loss)


def leak_of(model: nn.Module, gradients: Any = None, **options: Any) -> GradientLeak:
    given = own_gradients(model) if gradients is None else gradients
    return GradientLeak(model, given, **{"batch_size": 1, "input_shape": SHAPE} | options)


def label_of(leak: GradientLeak) -> LabelRecovery:
    return LABEL_ATTACKS["soft-label"]()(leak, generator=torch.Generator())


def image_of(leak: GradientLeak, labels: LabelRecovery) -> Reconstruction:
    return IMAGE_ATTACKS["analytic"]()(leak, labels, generator=torch.Generator())


@pytest.mark.parametrize(
    "build",
    [
        mlp,
        Viewed,
        Named,
        lambda: mlp(10, nn.Identity()),
        lambda: mlp(10, nn.Unflatten(1, (2, 5)), nn.Flatten()),
        lambda: nn.DataParallel(mlp()),
        lambda: nn.utils.parametrizations.weight_norm(mlp()[1]) and mlp(),
    ],
    ids=["plain", "view", "by keyword", "identity", "reshaped twice", "DataParallel", "beside"],
)
def test_what_ends_in_logits_is_read(build: Callable[[], nn.Module]) -> None:
    leak = leak_of(build())
    labels = label_of(leak)
    found = image_of(leak, labels)
    assert labels.status == found.status == "RECOVERED"
    torch.testing.assert_close(found.images, image().double(), atol=1e-5, rtol=0)


def test_log_softmax_has_the_same_cross_entropy() -> None:
    model = mlp(10, nn.LogSoftmax(1))
    leak = leak_of(model, own_gradients(model, F.nll_loss))
    assert label_of(leak).status == "RECOVERED"


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_the_one_inside(whole: bool) -> None:
    model = mlp()
    gradients = own_gradients(model)
    if whole:
        wrapped: nn.Module = Wrapped(model)
        named = {f"_orig_mod.{name}": g for name, g in gradients.items()}
    else:
        wrapped = copy.copy(model)
        wrapped._modules = {**model._modules, "1": Wrapped(model[1])}
        named = {name.replace("1.", "1._orig_mod.", 1): g for name, g in gradients.items()}
    leak = leak_of(wrapped, named)
    assert set(leak.gradients) == set(gradients)
    assert label_of(leak).status == "RECOVERED"
    assert [name for name, _ in wrapped.named_parameters()] == list(named)  # left as it was


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # still how users have them
def test_torchscript_is_refused_in_a_sentence() -> None:
    model = mlp()
    with pytest.raises(TypeError, match="TorchScript"):
        leak_of(torch.jit.script(model), own_gradients(model))


@pytest.mark.slow
def test_torch_compile_is_one_of_these() -> None:
    model = mlp()
    gradients = own_gradients(model)
    compiled = torch.compile(model)
    named = {f"_orig_mod.{name}": g for name, g in gradients.items()}
    assert label_of(leak_of(compiled, named)).status == "RECOVERED"
    model.compile()
    assert label_of(leak_of(model, gradients)).status == "RECOVERED"


@pytest.mark.parametrize(
    ("build", "loss", "sentence"),
    [
        (
            lambda: mlp(1),
            lambda z, y: F.mse_loss(z, torch.tensor([[0.7]])),
            "the model has one output: cross-entropy over classes needs two or more",
        ),
        (
            Tied,
            None,
            "the last layer's weight, 'two.weight', is tied to 'one.weight': its gradient",
        ),
        (Twice, None, "the last layer, 'layer', runs 2 times, so its gradient is a sum"),
        (
            Pair,
            lambda z, y: F.cross_entropy(z[0], y) + F.cross_entropy(z[1], y % 2),
            "the model has several outputs, of which 'one', 'two' are linear layers'",
        ),
        (
            Tokens,
            lambda z, y: F.cross_entropy(z[:, 0], y),
            r"has the shape \(2, 8, 10\), and must be one row of logits for each image",
        ),
        (
            lambda: mlp(10, nn.Softmax(1)),
            None,
            r"after the last linear layer, '3', .* takes a softmax",
        ),
        (
            lambda: mlp(10, nn.Sigmoid()),
            None,
            "after the last linear layer, '3', the model takes a sigmoid",
        ),
        (
            lambda: mlp(10, nn.Tanh()),
            None,
            "output must be that of a linear layer, its logits, or their log-softmax",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()),
            None,
            "output must be that of a linear layer",
        ),
    ],
)
def test_what_ends_otherwise_is_named(
    build: Callable[[], nn.Module], loss: Callable[..., Tensor] | None, sentence: str
) -> None:
    model = build()
    leak = leak_of(model, own_gradients(model, loss or F.cross_entropy))
    with pytest.raises(NotApplicable, match=sentence):
        Network(leak)
    answer = label_of(leak)
    assert answer.status == "NOT_APPLICABLE"
    assert image_of(leak, answer).status == "NOT_APPLICABLE"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (Attention, "the first layer must be linear on the pixels"),
        (Rows, r"the first linear layer, 'rows', takes several rows for each image .*\(8, 8\)"),
    ],
)
def test_images_of_other_layers_are_refused_in_a_sentence(
    build: Callable[[], nn.Module], sentence: str
) -> None:
    leak = leak_of(build())
    labels = label_of(leak)
    assert labels.status == "RECOVERED"
    for name in ("analytic", "r-gap", "relu-fit"):
        found = IMAGE_ATTACKS[name]()(leak, labels, generator=torch.Generator())
        assert found.status == "NOT_APPLICABLE"
    assert re.search(sentence, image_of(leak, labels).reason or "")


GRADIENTS: dict[str, Callable[[Tensor], Any]] = {
    "NumPy": lambda g: g.numpy(),
    "NumPy, not writeable": lambda g: np.broadcast_to(g.numpy(), g.shape),
    "NumPy, double": lambda g: g.numpy().astype(np.float64),
    "sparse": lambda g: g.to_sparse(),
    "compressed": lambda g: g.to_sparse_csr() if g.ndim == 2 else g,
    "a parameter": lambda g: nn.Parameter(g),
    "by columns": lambda g: g.t().contiguous().t() if g.ndim == 2 else g,
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_gradients_of_any_make_are_read(kind: str) -> None:
    model = mlp()
    leak = leak_of(model, {n: GRADIENTS[kind](g) for n, g in own_gradients(model).items()})
    assert all(type(g) is Tensor and g.layout is torch.strided for g in leak.gradients.values())
    assert label_of(leak).status == "RECOVERED"


def test_a_list_is_in_the_parameters_order() -> None:
    model = mlp()
    as_list = list(own_gradients(model).values())
    for given in (as_list, tuple(as_list)):
        assert label_of(leak_of(model, given)).status == "RECOVERED"
    model[1].weight.requires_grad_(False)
    assert set(leak_of(model, as_list[1:]).gradients) == {"1.bias", "3.weight", "3.bias"}
    with pytest.raises(ValueError, match="one for each of the 3 trainable parameters, found 2"):
        leak_of(model, as_list[2:])
    with pytest.raises(
        TypeError, match=r"map parameter names to tensors, or list them .*, found int"
    ):
        leak_of(model, 3)


def test_none_is_a_parameter_without_a_gradient() -> None:
    model = mlp()
    gradients = {**own_gradients(model), "1.bias": None}
    leak = leak_of(model, gradients)
    assert "1.bias" not in leak.gradients
    assert label_of(leak).status == "RECOVERED"


@pytest.mark.parametrize(
    ("made", "error", "sentence"),
    [
        (lambda g: g.to("meta"), ValueError, "must hold values, found one on the device 'meta'"),
        (lambda g: g.tolist(), TypeError, "must be a tensor or an array, found list"),
        (lambda g: np.array(["a"]), TypeError, "must hold numbers, found <U1"),
        (lambda g: g.long(), ValueError, "must be floating, found torch.int64"),
        (
            lambda g: g[:1],
            ValueError,
            r"must have the shape \(32,\) of its parameter, found \(1,\)",
        ),
    ],
)
def test_a_gradient_that_cannot_be_read_is_named(
    made: Callable[[Tensor], Any], error: type[Exception], sentence: str
) -> None:
    model = mlp()
    gradients = own_gradients(model)
    with pytest.raises(error, match=f"gradient '1.bias' {sentence}"):
        leak_of(model, {**gradients, "1.bias": made(gradients["1.bias"])})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # still how users have them
def test_quantised_gradients_are_read_as_what_they_are() -> None:
    model = mlp()
    gradients = own_gradients(model)
    made = torch.quantize_per_tensor(gradients["1.bias"], 1e-4, 0, torch.qint8)
    leak = leak_of(model, {**gradients, "1.bias": made})
    assert torch.equal(leak.gradients["1.bias"], made.dequantize())


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        ("resnet18", TypeError, "model must be an nn.Module, found str"),
        (nn.Flatten(), ValueError, "model must have parameters, found none"),
        (mlp().to("meta"), ValueError, "must hold values, found parameters on the device 'meta'"),
        (
            nn.Sequential(nn.Flatten(), nn.LazyLinear(3)),
            ValueError,
            "found lazy parameters: run it",
        ),
    ],
)
def test_a_model_that_cannot_be_read_is_named(
    model: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        leak_of(model, {})


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.mse_loss(z, F.one_hot(y, 10).float()),
        lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 10).float()),
    ],
    ids=["squared error", "binary cross-entropy"],
)
@pytest.mark.parametrize(
    "name", ["soft-label", "llg", "ilrg", "label-mass", "gradinversion-labels"]
)
def test_another_loss_is_named(name: str, loss: Callable[..., Tensor]) -> None:
    model = mlp()
    answer = LABEL_ATTACKS[name]()(
        leak_of(model, own_gradients(model, loss)), generator=torch.Generator()
    )
    assert answer.status in ("NOT_IDENTIFIABLE", "NOT_APPLICABLE")
    assert "don't sum to 0" in (answer.reason or "")
    assert answer.mass is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_not_called_saturation(dtype: torch.dtype) -> None:
    model = mlp()
    coarse = {name: g.to(dtype) for name, g in own_gradients(model).items()}
    answer = label_of(leak_of(model, coarse))
    assert answer.status == "RECOVERED" or "the rounding to 16 bits" in (answer.reason or "")
