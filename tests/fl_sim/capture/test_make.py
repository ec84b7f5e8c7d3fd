"""Captures of anyone's update: from files that people have, if they belong together."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fl_sim.capture.arrays import read_arrays
from fl_sim.capture.belonging import Belonging, examine
from fl_sim.capture.make import recipe_of, training_of
from fl_sim.errors import UserError
from fl_sim.flower.wire import gradient_leak
from fl_sim.recipe import Recipe
from fl_sim.testing import build_seeded

FlSim = Callable[..., Any]
Weights = dict[str, Tensor]
SHAPE = (1, 12, 12)


def trained(model: nn.Module, images: Tensor, labels: Tensor, **sgd: Any) -> Weights:
    """Return a model's state after a step, or several."""
    steps = sgd.pop("steps", 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(before)
    return after


def recipe(name: str, *, bias: bool) -> Recipe:
    return recipe_of(name, options={}, classes=4, input_shape=SHAPE, bias=bias)


def batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, *SHAPE, generator=generator)
    return images, torch.rand(size, 4, generator=generator).softmax(dim=1)


def verdict(model: nn.Module, sent: Weights, **told: Any) -> Belonging:
    training = training_of({"lr": 0.1, "batch_size": 1, "sends": "weights"} | told)
    return examine(gradient_leak(model, sent, training, input_shape=SHAPE))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["fcn4", "lenet5"])
@pytest.mark.parametrize(
    "told",
    [
        {},
        {"lr": 1e-4},
        {"batch_size": 3},
        {"local_steps": 3},
        {"local_steps": 2, "momentum": 0.9, "weight_decay": 0.01},
    ],
    ids=["one", "small-rate", "batch", "steps", "momentum"],
)
def test_honest_pairs_are_never_refused(name: str, bias: bool, told: dict[str, Any]) -> None:
    sgd = {"lr": 0.1} | {k: v for k, v in told.items() if k not in ("batch_size", "local_steps")}
    for seed in range(3):
        model = recipe(name, bias=bias).build()
        images, labels = batch(told.get("batch_size", 1), seed)
        sent = trained(model, images, labels, steps=told.get("local_steps", 1), **sgd)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rounded = {n: t.to(dtype) for n, t in sent.items() if t.is_floating_point()}
            assert verdict(model, rounded, **told).contradiction is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["fcn4", "lenet5"])
@pytest.mark.parametrize("size", [1, 3])
def test_weights_of_another_round_are_found_out(name: str, bias: bool, size: int) -> None:
    model = recipe(name, bias=bias).build()
    clients = [trained(model, *batch(size, seed), lr=0.1) for seed in range(4)]
    parameters = dict(model.named_parameters())
    later = recipe(name, bias=bias).build()
    later.load_state_dict({n: torch.stack([c[n] for c in clients]).mean(0) for n in clients[0]})
    found = verdict(later, {n: clients[0][n] for n in parameters}, batch_size=size)
    assert found.tested > 0
    assert found.contradiction is not None
    assert f"{size} example" in found.contradiction


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["fcn4", "lenet5"])
def test_a_gradient_of_another_rounds_weights_is_found_out(name: str, bias: bool) -> None:
    model = recipe(name, bias=bias).build()
    images, labels = batch(1, 0)
    names = [n for n, _ in model.named_parameters()]
    grads = torch.autograd.grad(cross_entropy(model(images), labels), [*model.parameters()])
    gradients = dict(zip(names, grads, strict=True))
    assert verdict(model, gradients, sends="gradient").contradiction is None
    model.load_state_dict(trained(model, *batch(4, 1), lr=0.1))
    found = verdict(model, gradients, sends="gradient").contradiction
    assert found is not None
    assert "leads to another input of" in found


def test_a_label_with_a_negative_entry_is_found_out() -> None:
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 4)))
    images, labels = batch(1, 0)[0], torch.tensor([2])
    grads = torch.autograd.grad(cross_entropy(model(images), labels), [*model.parameters()])
    gradients = dict(zip(["1.weight", "1.bias"], grads, strict=True))
    assert verdict(model, gradients, sends="gradient").contradiction is None
    model.load_state_dict(trained(model, *batch(4, 1), lr=1.0))
    found = verdict(model, gradients, sends="gradient").contradiction
    assert found is not None
    assert "a label would have to have an entry of -0." in found


def test_what_cannot_be_tested_is_not_called_tested() -> None:
    model = recipe("fcn4", bias=False).build()
    sent = trained(model, *batch(1, 0), lr=0.1)
    assert verdict(model, sent, batch_size=None) == Belonging(0)
    assert verdict(model, sent, optimizer="adam") == Belonging(0)


def network(num_classes: int) -> nn.Module:
    """Return a network of one's own; a user's module would hold it."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )


class Files:
    """A client's files, in each of the formats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = recipe("fcn4", bias=True).build()
        self.before = {n: t.clone() for n, t in model.state_dict().items()}
        self.after = trained(model, batch(1, 0)[0], torch.tensor([2]), lr=0.1)
        model.load_state_dict(self.after)
        self.later = trained(model, *batch(3, 1), lr=0.1)
        save_file(self.before, folder / "before.safetensors")
        save_file(self.after, folder / "after.safetensors")
        torch.save(self.before, folder / "before.pt")
        torch.save({"epoch": 1, "state_dict": self.after}, folder / "after.ckpt")
        torch.save({f"module.{n}": t for n, t in self.after.items()}, folder / "wrapped.pt")
        torch.save(self.later, folder / "later.pt")
        np.savez(folder / "before.npz", **{n: t.numpy() for n, t in self.before.items()})
        np.savez(folder / "after.npz", *[t.numpy() for t in self.after.values()])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)


TOLD = ("--model", "fcn4", "--bias", "--input-shape", "1,12,12", "--classes", "4", "--lr", "0.1")
TOLD += ("--batch-size", "1")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("before.safetensors", "after.safetensors"),
        ("before.pt", "after.ckpt"),
        ("before.npz", "after.npz"),
        ("before.pt", "wrapped.pt"),
    ],
)
@pytest.mark.usefixtures("files", "here")
def test_an_update_in_any_format_is_captured_and_attacked(
    fl_sim: FlSim, before: str, after: str
) -> None:
    made = fl_sim("capture", *TOLD, "--before", before, "--after", after, "--out", "u.safetensors")
    assert made.status == 0, made.stderr
    assert made.stdout.splitlines() == [
        "the weights and the update fit each other, as far as 4 linear layers can show",
        "u.safetensors",
    ]
    done = fl_sim("attack", "u.safetensors", "--label", "soft-label", "--out", "out")
    assert done.status == 0, done.stderr
    [record] = map(json.loads, Path("out", "leakage.jsonl").read_text().splitlines())
    assert record["label_status"] == "RECOVERED"
    assert "The server vouches for 1 label of 1 example." in done.stdout


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "another round": (("--after", "later.pt"), "don't belong together: layer"),
    "the same": (("--after", "before.npz"), "hold the same weights: no client has trained"),
    "neither": ((), "--after or --gradient must be given, one of them"),
    "both": (("--after", "after.npz", "--gradient", "after.npz"), "one of them"),
    "no file": (("--after", "nowhere.pt"), "nowhere.pt doesn't exist, or isn't a file"),
    "another network": (("--after", "after.npz", "--classes", "5"), "doesn't fit the model"),
    "a bad shape": (("--after", "after.npz", "--input-shape", "1,6,x"), "--input-shape must be"),
    "two sides": (
        ("--after", "after.npz", "--input-shape", "6,6"),
        "input_shape: must|input_shape",
    ),
    "a rate of 0": (("--after", "after.npz", "--lr", "0"), "lr must be above 0"),
    "half a loader": (("--after", "after.npz", "--mean", "0.5"), "--mean and --std go together"),
    "a bad loader": (("--after", "after.npz", "--mean", "0", "--std", "0"), "std above 0"),
    "a bad schedule": (("--after", "after.npz", "--schedule", "x"), "schedule must be one of"),
    "an unknown model": (("--after", "after.npz", "--model", "fcn5"), "unknown model 'fcn5'"),
    "a bad option": (("--after", "after.npz", "--model-option", "x=1"), "unknown option 'x'"),
    "a folder": (("--after", "after.npz", "--out", "."), "--out must be a file"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.usefixtures("files")
def test_a_mistake_is_one_sentence(fl_sim: FlSim, name: str) -> None:
    arguments, sentence = MISTAKES[name]
    done = fl_sim("capture", *TOLD, "--before", "before.pt", *arguments)
    assert (done.status, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("fl-sim: ")
    assert any(part in done.stderr for part in sentence.split("|")), done.stderr
    assert not Path("update.safetensors").exists()


@pytest.mark.usefixtures("files")
def test_what_was_noised_is_kept_where_it_is_said_so(fl_sim: FlSim) -> None:
    done = fl_sim("capture", *TOLD, "--before", "before.pt", "--after", "later.pt", "--noisy")
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("nothing tells whether the weights and the update belong")


@pytest.mark.usefixtures("files")
def test_a_full_disk_is_one_sentence(fl_sim: FlSim, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = fl_sim("capture", *TOLD, "--before", "before.pt", "--after", "after.npz")
    sentence = "capture update.safetensors can't be written: No space left on device"
    assert (done.status, done.stderr) == (2, f"fl-sim: {sentence}\n")
    assert not list(Path().glob("update*"))


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
def test_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"evil.{suffix}"
    if suffix == "pt":
        torch.save({"w": Evil()}, file)
    elif suffix == "npz":
        np.savez(file, w=np.array([Evil()], dtype=object))
    else:
        file.write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(UserError, match="can't be read"):
        read_arrays(file)
    assert not (tmp_path / "pwned").exists()


def test_archives_that_are_bombs_or_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "giant.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 1024), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match=r"no memory here holds|can't be read"):
        read_arrays(file)
    np.savez(tmp_path / "text.npz", w=np.array(["a"]))
    with pytest.raises(UserError, match="must hold real numbers"):
        read_arrays(tmp_path / "text.npz")
    torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "complex.pt")
    with pytest.raises(UserError, match=r"must hold real numbers, found torch.complex64"):
        read_arrays(tmp_path / "complex.pt")
    torch.save({"w": [1, 2]}, tmp_path / "lists.pt")
    with pytest.raises(UserError, match="must hold tensors by name"):
        read_arrays(tmp_path / "lists.pt")


def test_batch_norms_statistics_belong_to_the_weights(
    fl_sim: FlSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes):\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = build_seeded(lambda: network(4)).eval()
    before = {n: t for n, t in model.state_dict().items() if "running" not in n}
    torch.save(before, "before.pt")
    torch.save(trained(model, *batch(1, 0), lr=0.1), "after.pt")
    own = [*TOLD, "--model", "nets:build"]
    own.remove("--bias")
    done = fl_sim("capture", *own, "--before", "before.pt", "--after", "after.pt")
    assert done.status == 2
    assert "the model has a buffer '2.running_mean', found no such array" in done.stderr


@pytest.mark.slow
def test_no_honest_pair_of_many_is_refused() -> None:
    refused = []
    for seed in range(300):
        draws = np.random.default_rng(seed)
        name = str(draws.choice(["fcn4", "mlp", "lenet", "lenet5", "convnet"]))
        size, steps = int(draws.choice([1, 1, 2, 4])), int(draws.choice([1, 1, 1, 3]))
        lr = float(10 ** draws.uniform(-5, 0.5))
        model = recipe(name, bias=bool(draws.integers(2))).build()
        scale = float(10 ** draws.uniform(-1, 0.5))
        images, labels = batch(size, seed)
        sent = trained(model, scale * images, labels, lr=lr, steps=steps)
        told = {"lr": lr, "batch_size": size, "local_steps": steps}
        if not all(tensor.isfinite().all() for tensor in sent.values()):
            continue
        found = verdict(model, sent, **told).contradiction
        if found is not None:
            refused.append((seed, name, size, steps, lr, found))
    assert refused == []
