"""A capture from anyone: it is read back, or refused in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from fl_sim.capture.attack import OfflineAttack
from fl_sim.capture.file import pack_capture, read_capture
from fl_sim.capture.folder import CaptureFolder
from fl_sim.capture.update import Update
from fl_sim.errors import UserError
from fl_sim.flower.local_training import LocalTraining
from fl_sim.recipe import Recipe
from fl_sim.scenario import Attack

FlSim = Callable[..., Any]
Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
RECIPE = Recipe(
    name="fcn4", num_classes=3, input_shape=(1, 2, 2), mean=(0.0,), std=(1.0,), bias=True
)
SHAPES = {name: tuple(p.shape) for name, p in RECIPE.build().named_parameters()}


def an_update() -> Update:
    generator = torch.Generator().manual_seed(0)
    received = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    sent = {name: tensor + 0.1 for name, tensor in received.items()}
    return Update(2, 5, received, sent, LocalTraining(lr=0.1, batch_size=4), (1, 2, 2))


DATA = pack_capture(an_update(), RECIPE)


def changed(change: Change, data: bytes = DATA) -> bytes:
    """Return a capture's bytes with its JSON or its tensors changed."""
    length = int.from_bytes(data[:8], "little")
    described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fl-sim"])
    tensors = load(data)
    change(described, tensors)
    return save(tensors, metadata={"fl-sim": json.dumps(described)})


def setting(*path: Any, to: Any) -> Change:
    def change(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        target: Any = described
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = to

    return change


def replacing(name: str, tensor: torch.Tensor) -> Change:
    return lambda described, tensors: tensors.__setitem__(name, tensor)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    file.write_bytes(DATA)
    capture, update = read_capture(file), an_update()
    assert capture.recipe == RECIPE
    for name in ("server_round", "client", "training", "input_shape", "normalization"):
        assert getattr(capture.update, name) == getattr(update, name)
    for name in ("received", "sent"):
        found, expected = getattr(capture.update, name), getattr(update, name)
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert pack_capture(capture.update, capture.recipe) == DATA


def test_weights_that_captures_share_are_read_from_their_file(tmp_path: Path) -> None:
    folder, update = CaptureFolder(tmp_path), an_update()
    folder.keep(update, RECIPE)
    found = read_capture(folder.file(2, 5))
    assert all(torch.equal(found.update.received[n], t) for n, t in update.received.items())
    assert len(DATA) > 1.5 * folder.file(2, 5).stat().st_size


HOSTILE: dict[str, tuple[bytes | Change, str]] = {
    "empty": (b"", "isn't a safetensors file, or is cut off"),
    "a pickle": (pickle.dumps({"weights": [1.0]}), "isn't a safetensors file, or is cut off"),
    "half": (DATA[: len(DATA) // 2], "is damaged"),
    "a part of its head": (DATA[:100], "is cut off"),
    "no metadata": (save({"000000": torch.zeros(2)}), "isn't a file of fl-sim"),
    "another kind": (setting("kind", to="weights"), "holds 'weights', where 'capture' is wanted"),
    "another version": (setting("version", to=2), "is of version 2, and this fl-sim reads version"),
    "a name twice": (setting("tensors", 1, to="sent/2.weight"), "names a tensor twice"),
    "too few names": (setting("tensors", to=["sent/a"]), "must hold the 1 tensors that it names"),
    "a strange name": (setting("tensors", 0, to="../evil"), "neither sent nor received"),
    "complex numbers": (
        replacing("000000", torch.zeros(2, dtype=torch.complex64)),
        "must hold real numbers, found C64",
    ),
    "8-bit floats": (
        replacing("000000", torch.zeros(2, dtype=torch.float8_e5m2)),
        "must hold real numbers, found F8_E5M2",
    ),
    "whole numbers": (
        lambda described, tensors: tensors.update(
            {k: t.long() for k, t in tensors.items() if int(k) < len(SHAPES)}
        ),
        "must hold floats, found torch.int64",
    ),
    "another shape": (
        replacing("000000", torch.zeros(1, 1)),
        "of shape \\(1, 1\\) doesn't fit the model",
    ),
    "a path elsewhere": (
        setting("about", "weights", to={"file": "../../etc/passwd", "sha256": "0" * 64}),
        "weights: must be file, weights-<16",
    ),
    "an absolute path": (
        setting("about", "weights", to={"file": "/etc/passwd", "sha256": "0" * 64}),
        "weights: must be file, weights-<16",
    ),
    "two sources of weights": (
        setting(
            "about",
            "weights",
            to={"file": "weights-0123456789abcdef.safetensors", "sha256": "0" * 64},
        ),
        "holds weights, and names a file of them as well",
    ),
    "a giant network": (
        setting("about", "model", "num_classes", to=10**6),
        "model 'fcn4' has .* of shape \\(1000000, 64\\), found \\(3, 64\\)",
    ),
    "a giant image": (
        setting("about", "model", "input_shape", to=[1, 10**5, 10**5]),
        "input_shape must be of at most 67108864 numbers",
    ),
    "giant classes": (setting("about", "model", "num_classes", to=10**12), "num_classes: must be"),
    "an unknown network": (setting("about", "model", "name", to="fcn5"), "unknown model 'fcn5'"),
    "code": (setting("about", "model", "name", to="os:abort"), "names 'os:abort', code outside"),
    "code as a defense": (
        setting("about", "model", "defense", to=[{"name": "os:abort"}]),
        "names 'os:abort', code outside",
    ),
    "a key too many": (setting("about", "evil", to=1), "unknown key 'evil'"),
    "no training": (setting("about", "training", to=None), "training: must be"),
    "a negative rate": (setting("about", "training", "lr", to=-1.0), "lr must be above 0"),
    "an infinite rate": (setting("about", "training", "lr", to=float("inf")), "lr: must be"),
    "endless steps": (setting("about", "training", "local_steps", to=10**9), "must be at most"),
    "a list instead": (setting("about", to=[1, 2]), "isn't valid"),
    "nested without end": (
        DATA.replace(b'\\"about\\": {', b'\\"about\\": ' + b"[" * 10),
        "is damaged|isn't a file of fl-sim",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_capture_is_one_sentence(name: str, tmp_path: Path, fl_sim: FlSim) -> None:
    change, sentence = HOSTILE[name]
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(change if isinstance(change, bytes) else changed(change))
    with pytest.raises(UserError, match=sentence):
        OfflineAttack.of(file, Attack())
    done = fl_sim("attack", file, "--label", "soft-label", "--out", tmp_path / "out")
    assert done.status == 2
    assert done.stderr.startswith("fl-sim: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["lost", "changed", "another round's"])
def test_weights_that_are_lost_or_changed_are_found_out(tmp_path: Path, what: str) -> None:
    folder, update = CaptureFolder(tmp_path), an_update()
    folder.keep(update, RECIPE)
    [weights] = (tmp_path / "round-00002").glob("weights-*")
    if what == "lost":
        weights.unlink()
    elif what == "changed":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        shutil.copy(folder.file(2, 5), weights)
    sentence = "No such file" if what == "lost" else "aren't those that were captured"
    with pytest.raises(UserError, match=sentence):
        read_capture(folder.file(2, 5))


def test_two_captures_of_one_client_and_round_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(DATA)
    with pytest.raises(UserError, match=r"are both of round 2, client 5"):
        OfflineAttack.of(tmp_path, Attack())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["mlp", "fcn4", "os:abort", "weights", "full-batch", "train", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "mean", "x"]) | st.text(max_size=4), inner)
    ),
    max_leaves=6,
)
_ABOUT = json.loads(
    json.loads(DATA[8 : 8 + int.from_bytes(DATA[:8], "little")])["__metadata__"]["fl-sim"]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in nested tables and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in entries:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


CUTS = st.tuples(st.just("cut"), st.integers(0, len(DATA)))
BITS = st.tuples(
    st.just("bits"),
    st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=4),
)
VALUES = st.tuples(st.just("value"), st.tuples(st.sampled_from(places(_ABOUT)), JSON))
NAMES = st.tuples(st.just("name"), st.tuples(st.sampled_from(["about", "training", "x"]), JSON))
NOISE = st.tuples(st.just("noise"), st.binary(max_size=300))
MUTATIONS = CUTS | BITS | VALUES | NAMES | NOISE


def mutated(kind: str, what: Any) -> bytes:
    if kind == "cut":
        return DATA[:what]
    if kind == "noise":
        return bytes(what)
    if kind == "bits":
        data = bytearray(DATA)
        for position, byte in what:
            data[position] = byte
        return bytes(data)
    path, value = what if kind == "value" else ((what[0],), what[1])
    return changed(setting(*path, to=value))


def reads_or_refuses(mutation: tuple[str, Any], folder: Path) -> None:
    """Read a capture that isn't whole: it is understood, or a line says why not."""
    file = folder / "mutated.safetensors"
    file.write_bytes(mutated(*mutation))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            OfflineAttack.of(file, Attack())
    except UserError as error:
        assert str(error)
        assert "\n" not in str(error)


CHECKS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@given(MUTATIONS)
@settings(max_examples=60, derandomize=True, **CHECKS)
def test_any_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mutation: tuple[str, Any]
) -> None:
    reads_or_refuses(mutation, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@given(MUTATIONS)
@settings(max_examples=6000, **CHECKS)
def test_thousands_of_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mutation: tuple[str, Any]
) -> None:
    reads_or_refuses(mutation, tmp_path_factory.getbasetemp())
