"""Registries: names, entry points, options and what they say about mistakes."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS
from attacks.registry import Entry, Registry, nearest
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS

HERE = __name__


class Blur:
    """A target with one required and one optional option."""

    def __init__(self, radius: int, *, fill: float = 0.0) -> None:
        if radius < 0:
            raise ValueError(f"radius must be at least 0, found {radius}")
        self.radius, self.fill = radius, fill


def any_options(**options: Any) -> dict[str, Any]:
    return options


def no_options() -> str:
    return "built"


def has_a_bug(size: int = 1) -> int:
    return size + "one"  # type: ignore[operator]


def positional_only(size: int, /) -> int:
    return size


TARGETS = ("Blur", "any_options", "no_options", "has_a_bug", "positional_only")


def make_registry(group: str | None = None) -> Registry:
    entries = {name: Entry(f"{HERE}:{name}", f"about {name}") for name in TARGETS}
    return Registry("filter", entries | {"number": Entry("math:pi", "not callable")}, group=group)


def install(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> list[str]:
    """Pretend that a distribution has entry points in group "g"; return the groups asked for."""
    asked: list[str] = []
    installed = EntryPoints(EntryPoint(name, value, "g") for name, value in points)

    def entry_points(*, group: str) -> EntryPoints:
        asked.append(group)
        return installed.select(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


def test_maps_names_to_targets_in_order() -> None:
    registry = make_registry()
    assert list(registry) == [*TARGETS, "number"]
    assert len(registry) == 6
    assert registry["Blur"] is Blur
    assert registry["math:tau"] == 2 * registry["number"]
    assert registry[f"{HERE}:Blur.__init__"] is Blur.__init__
    assert registry.summary("Blur") == "about Blur"
    assert "Blur" in registry
    assert f"{HERE}:Blur" not in registry


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Blurr", "unknown filter 'Blurr'; did you mean 'Blur'?"),
        ("zzz", "unknown filter 'zzz'; known: Blur, any_options, "),
        ("no_such_module:x", "can't be imported: No module named 'no_such_module'"),
        ("math:no_such", "can't be imported: module 'math' has no attribute 'no_such'"),
        (":x", "it must be module:attr, found ':x'"),
        ("math:", "it must be module:attr, found 'math:'"),
        (".math:pi", "it must be module:attr, found '.math:pi'"),
    ],
)
def test_an_unknown_name_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_registry()[name]
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_summary_of_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'Blur'"):
        make_registry().summary("Blurr")


def test_builds_with_options() -> None:
    registry = make_registry()
    blur = registry.build("Blur", radius=2, fill=0.5)
    assert (blur.radius, blur.fill) == (2, 0.5)
    assert registry.build("no_options") == "built"
    assert registry.build("any_options", name=1, self=2) == {"name": 1, "self": 2}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("Blur", {"radius": 1, "fil": 2}, "filter 'Blur': unknown option 'fil'; did you mean"),
        ("Blur", {"zzz": 2}, "filter 'Blur': unknown option 'zzz'; known: fill, radius"),
        ("Blur", {}, "filter 'Blur': radius is required"),
        ("Blur", {"radius": -1}, "filter 'Blur': radius must be at least 0, found -1"),
        ("no_options", {"x": 1}, "filter 'no_options': unknown option 'x'; known: none"),
        ("positional_only", {}, "filter 'positional_only': missing a required"),
        ("number", {}, "filter 'number' must be a class or a function"),
    ],
)
def test_wrong_options_are_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_registry().build(name, **options)
    assert str(caught.value).startswith(sentence)


def test_defenses_say_what_they_take() -> None:
    with pytest.raises(ValueError, match=r"^defense 'mixup': unknown option 'beta'; known: alpha$"):
        DEFENSES.build("mixup", beta=1.0)
    with pytest.raises(
        ValueError, match=r"^defense 'dp-sgd': clipping_norm and noise_multiplier are required$"
    ):
        DEFENSES.build("dp-sgd")


def test_a_bug_inside_an_entry_stays_a_type_error() -> None:
    with pytest.raises(TypeError):
        make_registry().build("has_a_bug", size=1)


def test_entry_points_follow_the_built_in_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("sharpen", f"{HERE}:Blur [extra]"), ("edges", f"{HERE}:no_options"))
    registry = make_registry(group="g")
    assert list(registry) == [*TARGETS, "number", "sharpen", "edges"]
    assert len(registry) == 8
    assert registry.summary("sharpen") == f"{HERE}:Blur"
    assert registry.build("sharpen", radius=3).radius == 3
    with pytest.raises(ValueError, match="did you mean 'sharpen'"):
        registry["sharpn"]
    assert "sharpen" not in make_registry(group="other")


def test_entry_points_are_read_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = install(monkeypatch, ("sharpen", f"{HERE}:Blur"))
    registry = make_registry(group="g")
    assert registry["Blur"] is Blur
    assert "Blur" in registry
    assert asked == []
    assert "sharpen" in registry
    assert len(list(registry)) == 7
    assert asked == ["g"]


@pytest.mark.parametrize(
    ("points", "first", "second"),
    [
        ([("Blur", "theirs:Blur")], f"{HERE}:Blur", "theirs:Blur"),
        ([("sharpen", "one:A"), ("sharpen", "two:B")], "one:A", "two:B"),
    ],
    ids=["built-in", "another entry point"],
)
def test_a_name_that_is_taken_names_both_targets(
    monkeypatch: pytest.MonkeyPatch, points: list[tuple[str, str]], first: str, second: str
) -> None:
    install(monkeypatch, *points)
    with pytest.raises(ValueError, match="is taken") as caught:
        list(make_registry(group="g"))
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_an_entry_point_that_cannot_be_imported_names_its_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, ("sharpen", "no_such_module:Sharpen"))
    with pytest.raises(ValueError, match=r"filter 'sharpen' \(no_such_module:Sharpen\) can't be"):
        make_registry(group="g")["sharpen"]


@pytest.mark.parametrize(
    ("registry", "group"),
    [
        (LABEL_ATTACKS, "fl_sim.label_attacks"),
        (IMAGE_ATTACKS, "fl_sim.image_attacks"),
        (DEFENSES, "fl_sim.defenses"),
        (MODELS, "fl_sim.models"),
        (DATASETS, "fl_sim.datasets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_registry_takes_entry_points(registry: Registry, group: str) -> None:
    assert registry.group == group
    assert all(registry.summary(name) for name in registry)


def test_listing_imports_neither_torch_nor_flower() -> None:
    code = (
        "import sys, attacks, defenses, fl_sim\n"
        "for r in (attacks.LABEL_ATTACKS, attacks.IMAGE_ATTACKS, defenses.DEFENSES,"
        " fl_sim.MODELS, fl_sim.DATASETS):\n"
        "    [r.summary(name) for name in r]\n"
        "sys.exit(' '.join({'torch', 'flwr', 'pydantic'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "known", "ending"),
    [
        ("mixp", ["mixup", "sign"], "; did you mean 'mixup'?"),
        ("zzz", ["mixup", "cutmix"], "; known: cutmix, mixup"),
        ("zzz", [], "; known: none"),
    ],
)
def test_nearest(name: str, known: list[str], ending: str) -> None:
    assert nearest(name, known) == ending


@pytest.mark.parametrize("registry", [LABEL_ATTACKS, IMAGE_ATTACKS], ids=lambda r: r.kind)
def test_every_attack_states_the_loss_that_it_assumes(registry: Registry) -> None:
    for name in registry:
        text = " ".join((registry[name].__doc__ or "").split())
        assert re.search(r"The loss (is assumed to be|may be) [^.]*(cross-entropy|logits)", text), (
            f"{name}: its class's docstring must say 'The loss is assumed to be the cross-entropy'"
        )
