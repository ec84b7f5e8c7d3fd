"""What a sweep varies, and what it can't."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fl_sim.errors import UserError
from fl_sim.scenario import Scenario
from fl_sim.sweep.grid import Axis, Grid

BASE = Scenario.parse({"seed": 5, "defense": [{"name": "label-smoothing"}]})


def grid(*over: str, zipped: bool = False, seeds: int = 1) -> Grid:
    return Grid.of(BASE, [Axis.parse(one) for one in over], zipped=zipped, seeds=seeds)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("client.lr=0.1", (0.1,)),
        ("client.lr=0.1, 1", (0.1, 1)),
        ("model.name=mlp,lenet", ("mlp", "lenet")),
        ("model.name='a,b',c", ("a,b", "c")),
        ("model.bias=true,false", (True, False)),
        ("defense.0.smoothing=0.1,[0.0, 0.5]", (0.1, [0.0, 0.5])),
        ('defense=[],[{name="mixup", alpha=1.0}]', ([], [{"name": "mixup", "alpha": 1.0}])),
    ],
)
def test_values_are_read_as_set_reads_them(text: str, values: tuple[Any, ...]) -> None:
    assert Axis.parse(text) == Axis(text.partition("=")[0], values)


def test_each_is_taken_with_each_the_first_key_slowest() -> None:
    cells = grid("client.lr=0.1,0.2", "client.batch_size=1,2").cells()
    assert [tuple(cell.values()) for cell in cells] == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]


def test_zipped_keys_go_together() -> None:
    cells = grid("client.lr=0.1,0.2", "client.batch_size=1,2", zipped=True).cells()
    assert [tuple(cell.values()) for cell in cells] == [(0.1, 1), (0.2, 2)]


def test_without_a_key_the_seeds_alone_vary() -> None:
    runs = grid(seeds=3).runs()
    assert [run.name for run in runs] == ["cell-0-seed-5", "cell-0-seed-6", "cell-0-seed-7"]
    assert [run.scenario.seed for run in runs] == [5, 6, 7]


def test_a_run_keeps_its_name_when_seeds_are_added() -> None:
    few, more = (grid("client.lr=0.1,0.2", seeds=n).runs() for n in (1, 2))
    assert [run.name for run in more][: len(few)] == [run.name for run in few]
    assert few[1].scenario == BASE.with_changes({"client.lr": 0.2})


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        (["client.lr"], "--over must be key.path=value, found 'client.lr'"),
        (["client.lr="], "--over client.lr must have a value between commas, found 'client.lr='"),
        (["client.lr=0.1,,1"], "must have a value between commas"),
        (["client.lr=0.1,1,0.1"], "--over client.lr must name each value once, found 0.1 twice"),
        (["client.lr=1", "client.lr=2"], "--over client.lr must be no part of another --over"),
        (["client.lr=1", "client={}"], "--over client.lr must be no part of another --over"),
        (["seed=1,2"], "--over seed: --seeds says how many; --set seed= where they start"),
        (["client.lrr=1"], "--over client.lrr=1: unknown key 'client.lrr'; did you mean 'lr'?"),
        (["clients=3"], "unknown key 'clients'"),
        (["client.lr=0.1,-1"], "--over client.lr=-1: client.lr: must be above 0, found -1"),
        (["defense.1.smoothing=0.1"], "'1' must be the number of an entry of defense"),
        (["client.lr=1,1.0"], "must name each value once"),
        (["defense.0.smoothing=[0, 0.5],[0.0, 0.5]"], "must name each value once"),
        (["client.batch_size=1,2", "client.lr=0"], "client.batch_size=1, client.lr=0: client.lr:"),
    ],
)
def test_an_impossible_grid_is_one_sentence(over: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        grid(*over).runs()
    assert sentence in str(raised.value)


def test_zipped_keys_have_as_many_values() -> None:
    with pytest.raises(UserError, match=r"as many values of each key, found: client.lr has 2, rou"):
        grid("client.lr=0.1,0.2", "rounds=1,2,3", zipped=True)


def test_whatever_is_written_behind_over_is_a_grid_or_one_sentence() -> None:
    draw = random.Random(0)
    pieces = [
        "client.lr",
        "defense.0",
        "=",
        ",",
        ".",
        "0.1",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        " ",
        "a",
    ]
    refused = 0
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 8)))
        try:
            grid(text).cells()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 1000 < refused < 3000


def test_defenses_that_contradict_each_other_are_found_before_any_run() -> None:
    twice = [{"name": "gradient-clipping", "clipping_norm": 1.0}] * 2
    axis = Axis("defense", ([], twice))
    sentence = r"--over defense=.*GradientClipping both clip each step's gradient"
    with pytest.raises(UserError, match=sentence):
        Grid.of(Scenario(), [axis], zipped=False, seeds=1).runs()
