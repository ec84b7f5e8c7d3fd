"""What a client keeps: found again by the round, and dropped when no resume needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from defenses.base import NOTHING
from fl_sim.client_state import ClientState
from fl_sim.errors import UserError
from fl_sim.scenario import Scenario

Tiny = Callable[..., Scenario]
CPU = torch.device("cpu")


@pytest.fixture
def files(tiny: Tiny, tmp_path: Path) -> ClientState:
    return ClientState.of(tiny(), 3, str(tmp_path / "state"))


def states(value: float) -> dict[int, Mapping[str, Tensor]]:
    scalar = torch.tensor(value, dtype=torch.bfloat16)
    return {0: {"fc.weight": torch.full((2, 3), value).double().T}, 2: {"a/b": scalar}, 3: {}}


def value_of(files: ClientState, server_round: int) -> float | None:
    found = files.before(server_round, CPU)
    return float(found[2]["a/b"]) if found else None


def test_nothing_is_written_before_something_is_kept(files: ClientState, tmp_path: Path) -> None:
    assert files.before(1, CPU) is NOTHING
    files.forget_after(-1)
    assert not (tmp_path / "state").exists()


def test_what_is_kept_comes_back_bit_for_bit(files: ClientState) -> None:
    files.keep(1, states(0.1))
    found = files.before(2, CPU)
    assert list(found) == [0, 2]  # an empty state is none
    for stage, kept in found.items():
        for name, tensor in kept.items():
            expected = states(0.1)[stage][name]
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            assert torch.equal(tensor, expected)


def test_a_state_may_be_emptied(files: ClientState) -> None:
    files.keep(1, states(1))
    files.keep(2, {0: {}, 2: {}})
    assert not files.before(3, CPU)


def test_names_come_back_in_their_order(files: ClientState) -> None:
    kept = {name: torch.ones(size) for size, name in enumerate("hgafecdb", start=1)}
    files.keep(1, {0: kept, 1: {"z": torch.ones(1)}})
    found = files.before(2, CPU)
    assert [*found[0], *found[1]] == list("hgafecdbz")


def test_a_round_finds_what_the_last_one_before_it_left(files: ClientState) -> None:
    files.keep(2, states(2))
    files.keep(5, states(5))
    assert [value_of(files, r) for r in (1, 2, 3, 5, 6, 9)] == [None, None, 2, 2, 5, 5]


def test_two_rounds_stay_since_the_later_may_not_be_committed(files: ClientState) -> None:
    for server_round in (1, 2, 4, 7):
        files.keep(server_round, states(server_round))
    assert files.folder is not None
    assert sorted(os.listdir(files.folder)) == [
        "round-00004.safetensors",
        "round-00007.safetensors",
    ]


@pytest.mark.parametrize(
    ("committed", "left"), [(-1, []), (0, []), (4, [4]), (6, [4]), (7, [4, 7])]
)
def test_what_was_never_committed_is_forgotten(
    files: ClientState, committed: int, left: list[int]
) -> None:
    files.keep(4, states(4))
    files.keep(7, states(7))
    files.forget_after(committed)
    assert files._rounds() == left


def test_runs_and_clients_have_files_of_their_own(tiny: Tiny, tmp_path: Path) -> None:
    def of(client: int, *overrides: str) -> ClientState:
        return ClientState.of(tiny(*overrides), client, str(tmp_path))

    of(1).keep(1, states(1))
    assert value_of(of(1), 2) == 1
    assert value_of(of(1, "engine=ray"), 2) == 1  # another engine resumes the same run
    assert value_of(of(2), 2) is None
    assert value_of(of(1, "seed=4"), 2) is None


def test_a_client_without_a_folder_says_so(tiny: Tiny) -> None:
    files = ClientState.of(tiny(), 3, "")
    assert files.before(2, CPU) is NOTHING
    with pytest.raises(UserError) as caught:
        files.keep(1, states(1))
    assert str(caught.value) == (
        "client 3 must have a folder for what its defenses keep: client-state of its node's or "
        "the run's configuration, found none"
    )


def test_a_damaged_file_is_named(files: ClientState) -> None:
    files.keep(1, states(1))
    files._file(1).write_bytes(b"torn")
    with pytest.raises(UserError, match=r"client state .*round-00001.safetensors can't be read: "):
        files.before(2, CPU)


def test_a_state_that_cannot_be_saved_leaves_the_last_one(files: ClientState) -> None:
    files.keep(1, states(1))
    wrong = {0: {"w": torch.ones(1, dtype=torch.complex128)}}
    with pytest.raises(UserError, match=r"^client 3's state can't be saved: .*complex128"):
        files.keep(2, wrong)
    assert value_of(files, 3) == 1


def test_others_on_the_machine_cannot_look(files: ClientState) -> None:
    files.keep(1, states(1))
    assert files.folder is not None
    assert files.folder.stat().st_mode & 0o077 == 0
