"""The page says what the records say, of any run, and needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from fl_sim import wording
from fl_sim.errors import UserError
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.summary import summarize
from fl_sim.report import build_report, text
from fl_sim.report.examples import Key, _spread

ROUNDS = 3
HOSTILE = "<script>alert('x')</script>$x^{&"


class Page(HTMLParser):
    """The page's text, its tags in order, and each attribute of each tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text += data


def scenario(**changes: Any) -> dict[str, Any]:
    return {
        "name": "smoothing",
        "seed": 0,
        "rounds": ROUNDS,
        "engine": "local",
        "device": "auto",
        "data": {"name": "mnist-5k", "clients": 4, "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "fcn4", "bias": False, "options": {}},
        "client": {"fraction": 1.0, "batch_size": 1, "local_steps": 1, "lr": 0.1, "mode": "eval"},
        "server": {"strategy": "fedavg", "options": {}},
        "defense": [{"name": "label-smoothing", "smoothing": 0.1}],
        "attack": [{"label": "soft-label", "image": "analytic", "attacker": "unaware"}],
    } | changes


def leakage(**changes: Any) -> list[dict[str, Any]]:
    """Return lines of four clients in each round; client 3 fails in round 2."""
    lines = []
    for server_round in range(1, ROUNDS + 1):
        for client in range(4):
            fails = (server_round, client) == (2, 3)
            values = {
                "round": server_round,
                "client": client,
                "attack": 0,
                "example": 0,
                "batch_size": 1,
                "attacker": "unaware",
                "label_attack": "soft-label",
                "label_status": "NOT_CONVERGED" if fails else "RECOVERED",
                "label_reason": "the residual is 0.3" if fails else None,
                "label_linf": None if fails else 2.5e-8,
                "label_top1": None if fails else True,
                "augmentation": "label-smoothing",
                "true_augmentation": "label-smoothing",
                "smoothing": 0.1,
                "smoothing_error": 4e-9,
                "label_seconds": 0.05,
                "baseline_top1": client == 0,
                "image_attack": "analytic",
                "image_status": "NOT_APPLICABLE" if fails else "RECOVERED",
                "image_reason": "there is no label" if fails else None,
                "psnr_db": None if fails else 120.0 + client,
                "baseline_psnr_db": 11.5,
                "image_seconds": 0.01,
            }
            lines.append(json.loads(LeakageRecord(**values | changes).to_json()))
    return lines


def training(rounds: int = ROUNDS, epsilon: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "round": at,
            "accuracy": 0.1 + 0.2 * at,
            "loss": 2.3 - 0.3 * at,
            "epsilon": epsilon,
            "replies": 4 if at else 0,
            "quarantined": int(at == 1),
            "seconds": 1.5,
        }
        for at in range(rounds + 1)
    ]


def write(
    folder: Path,
    *,
    run: dict[str, Any] | None = None,
    records: list[dict[str, Any]] | None = None,
    rounds: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a run folder; files that aren't given are left out."""
    about = {"scenario": run or scenario(), "digest": "ab12", "versions": {"fl-sim": "0.1.0"}}
    about["started"] = "2026-11-24T02:00:00+00:00"
    (folder / "scenario.json").write_text(json.dumps(about))
    for name, lines in (("leakage", records), ("rounds", rounds)):
        if lines is not None:
            content = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(content)
    return folder


def write_examples(folder: Path, *, channels: int = 1, classes: int = 10) -> None:
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for at in range(1, ROUNDS + 1):
        for client in range(4):
            image, label = generator.random((channels, 6, 5)), generator.random(classes)
            arrays = {"image": image, "true_image": image, "label": label, "true_label": label}
            if client == 2:
                arrays["image"] = np.full_like(image, np.nan)
            if client == 3:
                del arrays["image"], arrays["label"]
            np.savez(folder / "images" / f"r{at:04d}-c{client:04d}-a0-e0.npz", **arrays)


def page_of(folder: Path) -> Page:
    path = build_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def plain(shown: str) -> str:
    """Return text with each run of white space, no-break ones too, as one space."""
    return re.sub(r"\s+", " ", shown)


def test_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    write(tmp_path, records=leakage(), rounds=training())
    shown = plain(page_of(tmp_path).text)
    (summary,) = summarize(leakage())
    assert summary.examples == 12
    assert (
        "The server recovered the image (identical to the eye) of 11 and the soft label of 11 of "
        "12 examples, as the judge knows. As the attacker knows, it vouches for 11 images and 11 "
        "labels." in shown
    )
    for group in text.measures([summary]):
        for term, (value,) in group.rows:
            assert plain(f"{term}{value}") in shown
    assert "right, as the judge knows11 of 12 (65–99 %)" in shown
    assert "median L∞2.5 × 10⁻⁸" in shown
    assert "Accuracy70 %" in shown
    assert "Replies12" in shown
    assert "the residual is 0.3" in shown
    assert "unfinished" not in shown
    assert "Privacy" not in shown


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    write_examples(write(tmp_path, records=leakage(), rounds=training(epsilon=2.0)))
    page = page_of(tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "base"} & {*page.tags}
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    links = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert links
    assert all(
        link is not None and link.startswith(("data:image/png;base64,", "#")) for link in links
    )
    assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", source))


def test_figures_are_written_and_inlined_in_the_page_colours(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    write(tmp_path, records=leakage(), rounds=training(epsilon=2.0))
    page = page_of(tmp_path)
    names = {"label_success", "psnr", "accuracy", "epsilon"}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == names
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.tags.count("svg") == len(names)
    assert source.count("currentColor") >= len(names)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len({*ids})
    references = {v for _, name, v in page.attributes if name == "xlink:href"}
    assert references <= {f"#{value}" for value in ids}
    assert dict(mpl.rcParams) == before


def test_every_image_has_an_alt_text_and_every_svg_a_name(tmp_path: Path) -> None:
    write_examples(write(tmp_path, records=leakage(), rounds=training()))
    page = page_of(tmp_path)
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alts) == page.tags.count("img") == 2 * 2 * ROUNDS  # clients 0 and 1, pairs
    assert all(alts)
    named = [name for tag, name, _ in page.attributes if tag == "svg" and name.startswith("aria-")]
    assert len(named) == page.tags.count("svg") == 3 * ROUNDS + 3  # clients 0 to 2, and figures


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write_examples(write(tmp_path, records=leakage(), rounds=training()))
    first = build_report(tmp_path).read_bytes()
    assert build_report(tmp_path).read_bytes() == first


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = scenario(name=HOSTILE, defense=[{"name": HOSTILE, HOSTILE: HOSTILE}])
    run["attack"] = [{"label": HOSTILE, "image": HOSTILE, "attacker": HOSTILE}]
    names = dict.fromkeys(("label_attack", "image_attack", "attacker", "augmentation"), HOSTILE)
    records = leakage(**names, label_status="FAILED", label_reason=HOSTILE)
    write_examples(write(tmp_path, run=run, records=records, rounds=training()))
    page = page_of(tmp_path)
    assert "script" not in page.tags
    assert HOSTILE in page.text
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.escape("<script>", quote=False) in source


def test_images_count_whatever_the_attack_claims(tmp_path: Path) -> None:
    """A server that can't vouch for its images has them all the same."""
    unclaimed = {"label_status": "NOT_CONVERGED", "image_status": "NOT_CONVERGED"}
    records = leakage(**unclaimed, label_linf=0.5, label_top1=False, psnr_db=47.0)
    write(tmp_path, records=records, rounds=training())
    sentence = (
        "recovered the image (hardly different to the eye) of 12 of 12 examples, as the judge "
        "knows. As the attacker knows, it vouches for none of it"
    )
    assert sentence in plain(page_of(tmp_path).text)


def test_a_whole_recovery_is_told_plainly(tmp_path: Path) -> None:
    records = leakage(label_status="RECOVERED", label_linf=0, image_status="RECOVERED", psnr_db=142)
    write(tmp_path, records=records, rounds=training())
    sentence = (
        "recovered the image (identical to the eye) of 12 and the soft label of 12 of 12 examples, "
        "as the judge knows. As the attacker knows, it vouches for 12 images and 12 labels."
    )
    assert sentence in plain(page_of(tmp_path).text)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    write(tmp_path, records=leakage(), rounds=training(2))
    with (tmp_path / "leakage.jsonl").open("a") as file:
        file.write('{"round": 3, "cli')  # torn by a kill
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "r0001-c0000-a0-e0.npz").write_bytes(b"PK\x03\x04torn")
    shown = plain(page_of(tmp_path).text)
    assert "This run is unfinished: 2 of 3 rounds are complete." in shown
    assert "The page counts 4 lines of a round that was interrupted." in shown
    assert "11 of 12 examples" in shown
    assert "Recovered images" not in shown


@pytest.mark.parametrize(
    ("changes", "records", "rounds", "sentence"),
    [
        ({}, None, None, "No update has been attacked yet."),
        ({"attack": []}, [], training(), "No attack was part of this run: it shows training only."),
        ({}, [], training(), "No update was attacked: none came in, or no attack covers it."),
        (
            {},
            leakage(attack=None, label_status=None, label_reason="it holds NaN"),
            training(),
            "No update could be attacked: 12 replies failed or were quarantined.",
        ),
        (
            {},
            leakage(
                label_status="FAILED",
                label_linf=None,
                label_top1=None,
                label_reason="it raised",
                image_status="NOT_APPLICABLE",
                psnr_db=None,
            ),
            training(),
            "The server recovered nothing of 12 examples beyond a guess, which is no sign of "
            "safety: it raised.",
        ),
        (
            {},
            leakage(label_linf=0.1, label_top1=True, image_attack=None, image_status=None),
            training(),
            "The server recovered the class of 12 (25 % without an update) of 12 examples, as the "
            "judge knows. As the attacker knows, it vouches for 11 labels, 11 wrongly.",
        ),
    ],
)
def test_runs_with_nothing_recovered(
    tmp_path: Path,
    changes: dict[str, Any],
    records: list[dict[str, Any]] | None,
    rounds: list[dict[str, Any]] | None,
    sentence: str,
) -> None:
    write(tmp_path, run=scenario(**changes), records=records, rounds=rounds)
    page = page_of(tmp_path)
    assert sentence in plain(page.text)
    assert "nan" not in page.text.lower().replace("it holds nan", "")
    assert "None" not in page.text


def test_the_strongest_of_several_attacks_leads(tmp_path: Path) -> None:
    weak = leakage(attack=1, label_attack="idlg", label_linf=0.1, image_attack=None)
    write(tmp_path, records=[*weak, *leakage(attacker="aware")], rounds=training())
    shown = plain(page_of(tmp_path).text)
    assert "The strongest of 2 attacks, soft-label + analytic (aware), recovered" in shown
    assert "Attacks compared" in shown


def test_colour_images_and_many_classes(tmp_path: Path) -> None:
    write_examples(write(tmp_path, records=leakage(), rounds=training()), channels=3, classes=100)
    page = page_of(tmp_path)
    assert "the 20 largest of 100 classes" in page.text
    assert "img" in page.tags


def test_examples_are_spread_over_rounds_and_attacks() -> None:
    keys = [Key(r, a, c, 0) for r in range(1, 101) for a in range(2) for c in range(5)]
    shown = _spread(keys, 24)[:24]
    assert len({*shown}) == 24
    assert sorted({key.round for key in shown})[::11] == [1, 100]  # 12 rounds, ends included
    assert {key.attack for key in shown} == {0, 1}
    assert sorted(_spread(keys, 24)) == sorted(keys)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.9999, "> 99.9 %"), (1e-5, "< 0.1 %"), (None, "–")],
)
def test_only_all_is_all(value: float | None, shown: str) -> None:
    assert plain(wording.percent(value)) == shown


def test_a_folder_that_is_no_run_folder(tmp_path: Path) -> None:
    message = f"{tmp_path} is not a run folder: it has no scenario.json"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scenario.json", "{", "isn't valid JSON"),
        ("scenario.json", "[]", 'must hold an object with the key "scenario"'),
        ("leakage.jsonl", "torn\n{}\n", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (write(tmp_path) / name).write_text(content)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / name))}.*{message}"):
        build_report(tmp_path)


def test_the_pictures_of_a_batch_come_from_several_clients() -> None:
    keys = [Key(1, 0, client, example) for client in range(4) for example in range(16)]
    shown = _spread(keys, 8)[:8]
    assert [(key.client, key.example) for key in shown] == [
        (client, example) for example in (0, 1) for client in range(4)
    ]


def test_an_image_as_the_model_takes_it_is_shown_with_its_range(tmp_path: Path) -> None:
    write(tmp_path, records=leakage(image_low=-2.0, image_high=3.0), rounds=training())
    (tmp_path / "images").mkdir()
    levels = np.linspace(0, 1, 16).reshape(1, 4, 4)
    arrays = {"image": 5 * levels - 2, "true_image": levels}
    np.savez(tmp_path / "images" / "r0001-c0000-a0-e0.npz", **arrays)
    page = page_of(tmp_path)
    assert "as the model takes it, from -2 to 3" in plain(page.text)
    true, recovered = (v for tag, name, v in page.attributes if (tag, name) == ("img", "src"))
    assert true == recovered


def test_epsilon_is_shown_with_its_delta(tmp_path: Path) -> None:
    described = scenario() | {"privacy": {"delta": 1e-6}}
    write(tmp_path, run=described, records=leakage(), rounds=training(epsilon=2.0))
    shown = plain(page_of(tmp_path).text)
    assert "at δ = 1e-06" in shown
    assert "Differential privacy against the server" in shown
