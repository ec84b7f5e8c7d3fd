"""The page of an audit of one's own app: what is vouched for, and nothing that needs a truth."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim.errors import UserError
from fl_sim.leakage.records import LeakageRecord
from fl_sim.leakage.summary import summarize
from fl_sim.leakage.table import table_text
from fl_sim.report import build_report, headline
from fl_sim.report.counted import counted_classes

HOSTILE = "<script>alert('x')</script>{{ 7 * 7 }}"
VOUCHED = LeakageRecord(
    round=1,
    client=1,
    attack=0,
    example=0,
    batch_size=1,
    attacker="unaware",
    label_attack="soft-label",
    label_status="RECOVERED",
    label_class=3,
    image_attack="analytic",
    image_status="RECOVERED",
)
NOTHING = dataclasses.replace(
    VOUCHED,
    example=None,
    label_status="NOT_APPLICABLE",
    label_reason="the update sums 7 local steps",
    label_class=None,
    image_status="NOT_APPLICABLE",
    image_reason="there is no label",
)


def write(folder: Path, records: list[LeakageRecord], **about: Any) -> Path:
    described = {
        "name": "mine",
        "seed": 0,
        "model": {"name": "Net", "parameters": 10, "input_shape": [1, 4, 4]},
        "client": {"lr": 0.1, "batch_size": None, "local_steps": 1, "fresh_optimizer": True},
        "server": {"strategy": "FedAvg"},
        "attack": [{"label": "soft-label", "image": "analytic", "attacker": "unaware"}],
        "defenses": "unknown",
        "class_names": None,
        "has_judge": False,
    } | about
    (folder / "scenario.json").write_text(json.dumps({"scenario": described, "kind": "audit"}))
    lines = "".join(f"{record.to_json()}\n" for record in records)
    (folder / "leakage.jsonl").write_text(lines)
    (folder / "rounds.jsonl").write_text('{"round": 1, "replies": 2, "quarantined": 1}\n')
    (folder / "images").mkdir(exist_ok=True)
    return folder


def shown(folder: Path) -> str:
    """Return the page's text, without its style, its white space as single blanks."""
    page = build_report(folder).read_text(encoding="utf-8").partition("</style>")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (
            [NOTHING],
            "No attack applies to these updates, which is no sign of safety: the update sums 7 "
            "local steps.",
        ),
        (
            [dataclasses.replace(NOTHING, label_status="NOT_CONVERGED", label_reason="of noise")],
            "No attack vouches for anything of 1 example, which is no sign of safety: of noise.",
        ),
        (
            [dataclasses.replace(NOTHING, image_status="NOT_CONVERGED", image_reason="of noise")],
            "No attack vouches for anything of 1 example, which is no sign of safety: the update "
            "sums 7 local steps.",
        ),
        (
            [VOUCHED, dataclasses.replace(NOTHING, client=2)],
            "The server vouches for 1 image and 1 label of 2 examples. No truth was given to "
            "compare them with.",
        ),
        (
            [dataclasses.replace(VOUCHED, image_attack=None, image_status=None)],
            "The server vouches for 1 label of 1 example. No truth was given to compare them with.",
        ),
    ],
    ids=["not applicable", "not vouched for", "labels not applicable", "some", "no image attack"],
)
def test_page_and_terminal_begin_with_the_same_sentence(
    tmp_path: Path, records: list[LeakageRecord], sentence: str
) -> None:
    assert sentence in headline(write(tmp_path, records))
    page = shown(tmp_path)
    assert sentence in page
    assert "None" not in page
    assert "as the judge knows" not in page.replace("only a judge who holds the truth knows", "")
    table = table_text([json.loads(r.to_json()) for r in records], has_truth=False)
    assert "right" not in table
    assert "false" not in table


def test_the_strongest_attack_is_the_one_that_vouches_for_most(tmp_path: Path) -> None:
    weak = dataclasses.replace(NOTHING, attack=1, label_attack="idlg", image_attack=None)
    write(tmp_path, [VOUCHED, dataclasses.replace(weak, label_class=2)])
    assert headline(tmp_path).startswith("The strongest of 2 attacks, soft-label + analytic")


def test_a_table_of_clients_says_which_classes_are_vouched_for(tmp_path: Path) -> None:
    records = [
        dataclasses.replace(VOUCHED, label_class_name="cat"),
        dataclasses.replace(VOUCHED, round=2, label_class_name="cat + dog"),
        dataclasses.replace(VOUCHED, client=2, label_status="NOT_CONVERGED", label_reason="noise"),
        *(dataclasses.replace(VOUCHED, client=3, round=k, label_class=k) for k in range(1, 15)),
    ]
    page = shown(write(tmp_path, records))
    assert "1 2 2 2 cat × 1, cat + dog × 1" in page
    assert "2 1 0 1 –" in page
    assert "12 × 1, and 2 more" in page


def test_a_mixed_label_names_both_classes(tmp_path: Path) -> None:
    mixed = dataclasses.replace(VOUCHED, label_class=3, label_second_class=1, mixing=0.7)
    assert "3 + 1 × 1" in shown(write(tmp_path, [mixed]))


def test_many_clients_are_cut(tmp_path: Path) -> None:
    records = [dataclasses.replace(VOUCHED, client=client) for client in range(60)]
    assert "The first 50 of 60 clients." in shown(write(tmp_path, records))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = [HOSTILE] * 4
    record = dataclasses.replace(VOUCHED, label_class_name=HOSTILE)
    write(tmp_path, [record], name=HOSTILE, class_names=names, defenses=HOSTILE)
    np.savez(tmp_path / "images" / "r0001-c0001-a0-e0.npz", label=np.eye(4)[3])
    np.savez(tmp_path / "images" / "r0001-c0001-a0.npz", mass=np.ones(4))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert HOSTILE in shown(tmp_path)


def test_what_was_counted_is_summed_over_updates(tmp_path: Path) -> None:
    count = dataclasses.replace(NOTHING, label_attack="llg", image_attack=None, image_status=None)
    write(tmp_path, [count])
    for at, mass in enumerate(([0.0, 3.0, 0.01], [1.0, 4.0, 0.0]), start=1):
        np.savez(tmp_path / "images" / f"r{at:04d}-c0001-a0.npz", mass=np.array(mass))
    np.savez(tmp_path / "images" / "r0003-c0001-a0.npz", mass=np.array([np.nan, 1, 1]))
    np.savez(tmp_path / "images" / "r0001-c0001-a7.npz", mass=np.ones(3))  # no such attack
    (tmp_path / "images" / "r0004-c0001-a0.npz").write_bytes(b"PK\x03\x04torn")
    (line,) = counted_classes(
        tmp_path / "images", summarize([json.loads(count.to_json())]), ["ant", "bee", "cat"]
    )
    assert (line.attack, line.client, line.updates) == ("llg", 1, 2)
    assert line.classes == "bee × 7.0, ant × 1.0"
    assert "llg 1 2 1 × 7.0, 0 × 1.0" in shown(tmp_path)


def test_an_audit_without_records_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, [])
    with pytest.raises(UserError, match=r"holds no records: no update was attacked, since none ca"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
