"""Attack captures offline: a run's again, or anyone's update, in parallel."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fl_sim.atomic import write_atomically
from fl_sim.capture.backlog import Backlog
from fl_sim.capture.file import Capture, read_capture
from fl_sim.capture.folder import find_captures, run_of
from fl_sim.capture.pending import PendingRounds
from fl_sim.capture.plans import Scene, combining
from fl_sim.errors import UserError
from fl_sim.leakage.findings import Finding, with_class_name
from fl_sim.leakage.landing import land
from fl_sim.leakage.records import append_lines, read_lines
from fl_sim.origin import AUDIT, REPLAY, describe_audit, when_and_with
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Attack, Scenario
from fl_sim.scenario.errors import validated
from fl_sim.scenario.sections import Section

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
        class_names: as an own app's audit was told them; None where it wasn't, or there is none.
    """

    files: dict[tuple[int, int], Path]
    scene: Scene
    sample: Capture
    run: Path | None
    class_names: list[str] | None = None

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
            seed: of the attacks' draws; None: that scenario's or audit's, or 0.
            trusts: whether code that the files name outside fl-sim is imported.

        Raises:
            UserError: a file is damaged, names foreign code without trust, or doesn't fit another;
                or there is no attack.
        """
        paths = find_captures(source)
        run = run_of(paths[0])
        scenario, audit = (None, None) if run is None else _description_of(run)
        if attack is None and (scenario is None or not scenario.attack):
            raise UserError(f"--label must name a label attack: {source} tells of none")
        if scenario is not None and not trusts:
            _require_own(run or source, _foreign(scenario, with_attacks=attack is None))
        committed = math.inf if run is None else RunFolder(run).last_round() or 0
        files: dict[tuple[int, int], Path] = {}
        for path in paths:
            capture = _checked(path, trusts=trusts, is_of_a_run=run is not None)
            _require_named(path, capture, audit)
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
        scene = _scene(attack, scenario, audit, seed)
        scene.auditor(sample.recipe)  # finds mistakes in its options
        return cls(files, scene, sample, run, None if audit is None else audit.class_names)

    @property
    def name(self) -> str:
        """What its folder is named after."""
        if self.scene.scenario is not None:
            return f"{self.scene.scenario.name}-attack"
        own = next(iter(self.files.values())).stem if self.run is None else self.run.name
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
            lambda client: {r: path for (r, c), path in self.files.items() if c == client},
            pending,
            self.scene,
            self.sample.recipe,
            jobs=jobs,
            most=total,
            land=partial(self._land, log=folder.log, images=folder.images, most=kept),
            on_progress=on_progress and (lambda left: on_progress(total - left, total)),
        )
        with backlog:
            backlog.settle()
        return out

    def _land(self, findings: Sequence[Finding], **places: Any) -> None:
        if self.class_names is not None:
            findings = [with_class_name(finding, self.class_names) for finding in findings]
        land(findings, **places)

    @property
    def _canaries(self) -> Collection[int]:
        """The clients that hold no data, and aren't attacked."""
        return () if self.scene.scenario is None else self.scene.scenario.canaries

    def _owed(self, server_round: int) -> dict[int, list[int]]:
        """Return which attacks a round's captures get."""
        owed = {}
        attacks = self.scene.attacks
        places = [place for place in self.files if place[1] not in self._canaries]
        for client in sorted(c for r, c in places if r == server_round):
            owed[client] = [
                i
                for i, a in enumerate(attacks)
                if a.combine is None and a.covers(server_round, client)
            ]
        if server_round == max(r for r, _ in self.files):
            clients = {c: [r for r, d in places if d == c] for _, c in places}
            for client, together in combining(attacks, clients).items():
                owed[client] = sorted([*owed.get(client, []), *together])
        return {client: covering for client, covering in sorted(owed.items()) if covering}

    def _describe(self, folder: RunFolder) -> None:
        """Write `scenario.json`, and `rounds.jsonl` as far as it is known."""
        described: dict[str, Any]
        if self.scene.scenario is not None:
            described = {"scenario": self.scene.scenario.model_dump(mode="json"), "kind": REPLAY}
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
                class_names=self.class_names,
                has_judge=False,
            )
            described = {"scenario": about, "kind": AUDIT}
        if self.run is not None:
            lines = [json.dumps(line) for line in read_lines(self.run / "rounds.jsonl")]
        else:
            replies = Counter(server_round for server_round, _ in self.files)
            lines = [
                json.dumps({"round": r, "replies": replies[r], "quarantined": 0})
                for r in sorted(replies)
            ]
        text = json.dumps(described | when_and_with(), indent=2) + "\n"
        write_atomically(folder.path / "scenario.json", text.encode())
        append_lines(folder.rounds, lines)


class _Audit(Section):
    """What the audit of an own app says of its records, in its `scenario.json`."""

    seed: int = 0
    defenses: str | None = None
    class_names: list[str] | None = None


def _description_of(run: Path) -> tuple[Scenario | None, _Audit | None]:
    """Read what a run's folder is of: a scenario, or the audit of an own app.

    Raises:
        UserError: it is damaged, or of another version.
    """
    path = run / "scenario.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        values, kind = described["scenario"], described.get("kind")
        if not isinstance(values, dict):
            raise TypeError("it must be a table")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} isn't a run's description: {error}") from error
    try:
        if kind != AUDIT:
            return Scenario.parse(values), None
        return None, validated(_Audit, {k: values[k] for k in _Audit.model_fields if k in values})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _require_named(path: Path, capture: Capture, audit: _Audit | None) -> None:
    """Raise unless an audit names as many classes as a capture's network has.

    Raises:
        UserError: it names more or fewer.
    """
    names, classes = None if audit is None else audit.class_names, capture.recipe.num_classes
    if names is not None and len(names) != classes:
        raise UserError(
            f"capture {path} is of a network with {classes} classes, and its run's scenario.json "
            f"names {len(names)}"
        )


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


def _scene(
    attack: Attack | None, scenario: Scenario | None, audit: _Audit | None, seed: int | None
) -> Scene:
    """Return what is attacked by what: by the attack that is told, or by the scenario's own."""
    if scenario is None:
        assert attack is not None
        told = audit or _Audit()
        return Scene((attack,), told.seed if seed is None else seed, defenses=told.defenses)
    attacks = tuple(scenario.attack) if attack is None else (attack,)
    changed = scenario.with_changes({"attack": [each.model_dump() for each in attacks]})
    return Scene(attacks, scenario.seed if seed is None else seed, changed)
