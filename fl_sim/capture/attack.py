"""Attack captures offline: a run's again, or anyone's update, in parallel."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fl_sim.atomic import write_atomically
from fl_sim.capture.backlog import Backlog
from fl_sim.capture.file import Capture, read_capture
from fl_sim.capture.folder import find_captures, run_of
from fl_sim.capture.pending import PendingRounds
from fl_sim.capture.plans import Scene
from fl_sim.errors import UserError
from fl_sim.leakage.landing import land
from fl_sim.leakage.records import append_lines, read_lines
from fl_sim.origin import AUDIT, REPLAY, describe_audit, when_and_with
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Attack, Scenario

IMAGES_KEPT = 20
"""Most images of a round that are kept where no scenario says otherwise."""


@dataclass(frozen=True, eq=False)
class OfflineAttack:
    """Captures that have been read and found whole, and the attacks on them.

    Args:
        files: (server round, client) -> the capture.
        scene: the attacks and the truth, if a scenario is known.
        sample: one of the captures.
        run: the folder of the run that they come from; None where it isn't known.
    """

    files: dict[tuple[int, int], Path]
    scene: Scene
    sample: Capture
    run: Path | None

    @classmethod
    def of(
        cls,
        source: Path,
        attack: Attack | None = None,
        *,
        seed: int | None = None,
        trusts: bool = False,
    ) -> OfflineAttack:
        """Read captures, and check that they can be attacked.

        Args:
            source: a capture, a folder of some, or a run's folder.
            attack: the attack; None: those of the scenario that they come from.
            seed: of the attacks' draws; None: that scenario's, or 0.
            trusts: whether code that the files name outside fl-sim is imported.

        Raises:
            UserError: a file is damaged, names foreign code without trust, or doesn't fit another;
                or there is no attack.
        """
        paths = find_captures(source)
        run = run_of(paths[0])
        scenario = None if run is None else _scenario_of(run)
        if attack is None and (scenario is None or not scenario.attack):
            raise UserError(f"--label must name a label attack: {source} tells of none")
        if scenario is not None and not trusts:
            _require_own(run or source, _foreign(scenario, with_attacks=attack is None))
        committed = math.inf if run is None else RunFolder(run).last_round() or 0
        files: dict[tuple[int, int], Path] = {}
        for path in paths:
            capture = _checked(path, trusts=trusts, is_of_a_run=run is not None)
            place = (capture.update.server_round, capture.update.client)
            if place[0] > committed:  # of a round in which a run was killed
                continue
            if place in files:
                first = files[place]
                raise UserError(
                    f"{first} and {path} are both of round {place[0]}, client {place[1]}"
                )
            files[place], sample = path, capture
        if not files:
            raise UserError(f"{source} holds captures of rounds that weren't completed only")
        scene = _scene(attack, scenario, seed)
        scene.auditor(sample.recipe)  # finds mistakes in its options
        return cls(files, scene, sample, run)

    @property
    def name(self) -> str:
        """What its folder is named after."""
        scenario = self.scene.scenario
        own = next(iter(self.files.values())).stem if scenario is None else scenario.name
        return f"{own}-attack"

    def work_off(
        self, out: Path, *, jobs: int, on_progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """Attack all captures, and leave a run folder.

        Args:
            out: a new or empty folder.
            jobs: processes, one thread each.
            on_progress: called with (updates that are done, all).

        Returns:
            `out`.

        Raises:
            UserError: a file can't be had any more.
            OSError: the disk is full.
        """
        folder = RunFolder(out)
        folder.images.mkdir(parents=True, exist_ok=True)
        self._describe(folder)
        pending = PendingRounds(folder.pending)
        total = 0
        for server_round in sorted({r for r, _ in self.files}):
            owed = self._owed(server_round)
            pending.keep(server_round, [], owed)
            total += len(owed)
        scenario = self.scene.scenario
        kept = IMAGES_KEPT if scenario is None else scenario.images
        backlog = Backlog(
            lambda *place: self.files[place],
            pending,
            self.scene,
            self.sample.recipe,
            jobs=jobs,
            most=total,
            land=partial(land, log=folder.log, images=folder.images, most=kept),
            on_progress=on_progress and (lambda left: on_progress(total - left, total)),
        )
        with backlog:
            backlog.settle()
        return out

    def _owed(self, server_round: int) -> dict[int, list[int]]:
        """Return which attacks a round's captures get."""
        owed = {}
        for client in sorted(c for r, c in self.files if r == server_round):
            covering = [
                i for i, a in enumerate(self.scene.attacks) if a.covers(server_round, client)
            ]
            if covering:
                owed[client] = covering
        return owed

    def _describe(self, folder: RunFolder) -> None:
        """Write `scenario.json`, and `rounds.jsonl` as far as it is known."""
        described: dict[str, Any]
        if self.scene.scenario is not None:
            assert self.run is not None
            described = {"scenario": self.scene.scenario.model_dump(mode="json"), "kind": REPLAY}
            lines = [json.dumps(line) for line in read_lines(self.run / "rounds.jsonl")]
        else:
            update = self.sample.update
            auditor = self.scene.auditor(self.sample.recipe)
            about = describe_audit(
                model=self.sample.build_model(),
                input_shape=update.input_shape,
                training=dataclasses.asdict(update.training),
                plans=auditor.plans,
                strategy="not known",
                name=self.name,
                defenses=auditor.defenses,
                seed=self.scene.seed,
                class_names=None,
                has_judge=False,
            )
            described = {"scenario": about, "kind": AUDIT}
            replies = Counter(server_round for server_round, _ in self.files)
            lines = [
                json.dumps({"round": r, "replies": replies[r], "quarantined": 0})
                for r in sorted(replies)
            ]
        text = json.dumps(described | when_and_with(), indent=2) + "\n"
        write_atomically(folder.path / "scenario.json", text.encode())
        append_lines(folder.rounds, lines)


def _scenario_of(run: Path) -> Scenario:
    """Read the scenario of a run's folder.

    Raises:
        UserError: it is damaged, or of another version.
    """
    path = run / "scenario.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["scenario"]
        if not isinstance(values, dict):
            raise TypeError("it must be a table")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} isn't a run's description: {error}") from error
    try:
        return Scenario.parse(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _foreign(scenario: Scenario, *, with_attacks: bool) -> list[str]:
    """Return the code outside fl-sim that replaying a scenario imports."""
    names = [scenario.data.name, scenario.model.name, *(each.name for each in scenario.defense)]
    if with_attacks:
        names += [name for each in scenario.attack for name in (each.label, each.image) if name]
    return [name for name in names if ":" in name]


def _require_own(path: Path, foreign: Sequence[str]) -> None:
    """Raise if files name code that nobody at this machine has chosen.

    Raises:
        UserError: they do.
    """
    if foreign:
        raise UserError(
            f"{path} names {foreign[0]!r}, code outside fl-sim, which would be imported and run: "
            "add --trust if you know where the file comes from"
        )


def _checked(path: Path, *, trusts: bool, is_of_a_run: bool) -> Capture:
    """Read a capture whose network can be built and whose update is one of it.

    Of a run's captures, what can't be translated is a record, as it was in the round.

    Raises:
        UserError: it is damaged, names foreign code without trust, or doesn't fit its network.
    """
    capture = read_capture(path)
    if not trusts:
        _require_own(path, capture.recipe.foreign)
    try:
        model = capture.build_model()
        leak = None if is_of_a_run else capture.update.translated(model)
    except (ValueError, TypeError) as error:
        raise UserError(f"capture {path}: {error}") from error
    if isinstance(leak, str):
        raise UserError(f"capture {path}: {leak}")
    return capture


def _scene(attack: Attack | None, scenario: Scenario | None, seed: int | None) -> Scene:
    """Return what is attacked by what: by the attack that is told, or by the scenario's own."""
    if scenario is None:
        assert attack is not None
        return Scene((attack,), seed or 0)
    attacks = tuple(scenario.attack) if attack is None else (attack,)
    told = scenario.with_changes({"attack": [each.model_dump() for each in attacks]})
    return Scene(attacks, scenario.seed if seed is None else seed, told)
