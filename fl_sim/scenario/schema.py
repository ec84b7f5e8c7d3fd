"""A scenario: everything that determines a run, read from TOML and validated."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from attacks.devices import DEVICES, KNOWN
from defenses import DEFENSES
from defenses.pairs import require_consistent
from fl_sim import ENGINES
from fl_sim.errors import UserError
from fl_sim.scenario.changes import change, make_room, parse_change
from fl_sim.scenario.errors import validated
from fl_sim.scenario.sections import (
    Attack,
    Audit,
    Client,
    Data,
    DefenseStage,
    Every,
    Model,
    Positive,
    Privacy,
    Section,
    Server,
    TrackerStage,
)

_ENGINES = " or ".join(repr(name) for name in ENGINES)
_NOT_IN_RECORDS: dict[str, Any] = {
    **dict.fromkeys(("name", "images", "engine", "rounds", "tracker"), True),
    "server": {"capture", "attack_jobs", "attack_queue"},
    "attack": {"__all__": {"when"}},
}
"""What changes no record: of more rounds, the first ones are those of fewer."""


def determining_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the records, of a scenario as it was written down."""
    kept = {
        key: _without(part, _NOT_IN_RECORDS.get(key, ()))
        for key, part in values.items()
        if _NOT_IN_RECORDS.get(key) is not True
    }
    return kept | _rounds_if_combined(values)


def _rounds_if_combined(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of rounds where an attack takes them together, and so depends on it."""
    is_combined = any(attack.get("combine") is not None for attack in values.get("attack") or ())
    return {"rounds": values.get("rounds")} if is_combined else {}


def _without(part: Any, left_out: Any) -> Any:
    if isinstance(part, list):
        own = left_out["__all__"] if left_out else ()
        return [_without(one, own) for one in part]
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key not in left_out}
    return part


class Scenario(Section):
    """A whole run. Build one with `load`, or from keyword arguments."""

    name: str = "scenario"
    seed: int = Field(0, ge=0, lt=2**63, description="a whole number from 0 to 2**63 - 1")
    rounds: Positive = 10
    engine: str = Field("local", description=_ENGINES)
    device: str = Field(
        "auto",
        pattern=rf"^({DEVICES})\z",
        description=KNOWN,
    )
    images: Annotated[int, Field(ge=0)] = 20
    data: Data = Data()
    model: Model = Model()
    client: Client = Client()
    server: Server = Server()
    privacy: Privacy = Privacy()
    audit: Audit = Audit()
    defense: list[DefenseStage] = Field([], description="tables, each headed [[defense]]")
    attack: list[Attack] = Field([], description="tables, each headed [[attack]]")
    tracker: list[TrackerStage] = Field([], description="tables, each headed [[tracker]]")

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, name: str) -> str:
        if name not in ENGINES:
            raise ValueError(f"must be {_ENGINES}, found {name!r}")
        return name

    @model_validator(mode="after")
    def _defenses_go_together(self) -> Scenario:
        """Find a pair that contradicts itself before a sweep has begun."""
        names = [stage.name for stage in self.defense]
        if len(names) > 1 and all(name in DEFENSES for name in names):
            stages = [DEFENSES.build(stage.name, **stage.parameters) for stage in self.defense]
            try:
                require_consistent(stages, local_steps=self.client.local_steps)
            except ValueError as error:
                raise ValueError(f"defense: {error}") from error
        return self

    @property
    def clients_a_round(self) -> int:
        """How many clients take part in each round."""
        return max(1, round(self.client.fraction * self.data.clients))

    @property
    def canaries(self) -> range:
        """Numbers of the clients that send random vectors: the last ones."""
        return range(self.data.clients - self.audit.canaries, self.data.clients)

    @model_validator(mode="after")
    def _canaries_are_clients(self) -> Scenario:
        if self.audit.canaries > self.data.clients:
            raise ValueError(
                f"audit.canaries: must be at most the clients, {self.data.clients}, found "
                f"{self.audit.canaries}"
            )
        for index, attack in enumerate(self.attack):
            named = [] if attack.clients == "all" else attack.clients
            found = [client for client in named if client in self.canaries]
            if found:
                raise ValueError(
                    f"attack.{index}.clients: must be clients that train, found {found[0]}, which "
                    "is a canary"
                )
        return self

    @model_validator(mode="after")
    def _sums_are_attacked(self) -> Scenario:
        size = self.server.secure_aggregation
        if size is None:
            return self
        taking_part = self.clients_a_round
        if size > taking_part:
            raise ValueError(
                "server.secure_aggregation: must be at most the clients of a round, "
                f"{taking_part}, found {size}"
            )
        shows = "server.secure_aggregation shows sums alone"
        for index, attack in enumerate(self.attack):
            if attack.clients != "all":
                raise ValueError(
                    f'attack.{index}.clients: must be "all", since {shows}, found {attack.clients}'
                )
            if attack.when == "after":
                raise ValueError(
                    f"attack.{index}.when: must be left out, since {shows}, of which none are kept "
                    "for later, found 'after'"
                )
        if self.attack and self.audit.canaries:
            raise ValueError(
                f"audit.canaries: must be 0 beside an attack, since {shows}, and one with a "
                f"canary's vector in it is no batch's gradient, found {self.audit.canaries}"
            )
        return self

    @model_validator(mode="after")
    def _attacked_clients_exist(self) -> Scenario:
        last = self.data.clients - 1
        for index, attack in enumerate(self.attack):
            beyond = [] if attack.clients == "all" else [n for n in attack.clients if n > last]
            if beyond:
                raise ValueError(
                    f"attack.{index}.clients: must be at most {last}, found {beyond[0]}"
                )
        return self

    @model_validator(mode="after")
    def _attacked_rounds_exist(self) -> Scenario:
        for index, attack in enumerate(self.attack):
            key, named = f"attack.{index}.rounds", attack.rounds
            if isinstance(named, Every):
                key, named = f"{key}.every", [named.every]
            beyond = [] if named == "all" else [n for n in named if n > self.rounds]
            if beyond:
                raise ValueError(f"{key}: must be at most {self.rounds}, found {beyond[0]}")
        return self

    @model_validator(mode="after")
    def _combined_rounds_are_captured(self) -> Scenario:
        for index, attack in enumerate(self.attack):
            if attack.combine is not None and not self.server.capture:
                raise ValueError(
                    f"attack.{index}.combine: takes what every round kept, and needs "
                    "server.capture = true, found false"
                )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Scenario:
        """Validate a mapping.

        Raises:
            UserError: names the first key that is wrong, the rule and the value found.
        """
        return validated(cls, values)

    @classmethod
    def load(
        cls, path: Path, overrides: Sequence[str] = (), *, seed: int | None = None
    ) -> Scenario:
        """Read a TOML file, with `key.path=value` overrides.

        Raises:
            UserError: the file is missing or isn't TOML, or a key or value is wrong.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # with a BOM or without
        except OSError as error:
            raise UserError(f"scenario {path} can't be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"scenario {path} isn't valid TOML: {error}") from error
        values.setdefault("name", path.stem)
        try:
            changes = [parse_change(override) for override in overrides]
            make_room(values, [path for path, _ in changes])
            for path_of_key, value in changes:
                change(values, path_of_key, value)
        except UserError as error:
            raise UserError(f"--set {error}") from error
        if seed is not None:
            values["seed"] = seed
        return cls.parse(values)

    def with_changes(self, changes: Mapping[str, object]) -> Scenario:
        """Return another scenario, in which some values are others.

        Args:
            changes: key path -> value, as `--set` takes them; a number in a path indexes a list.

        Raises:
            UserError: a path leads nowhere, or a value is wrong.

        Example:
            >>> scenario = Scenario.parse({"defense": [{"name": "label-smoothing"}]})
            >>> other = scenario.with_changes({"client.lr": 0.05, "defense.0.smoothing": 0.2})
            >>> other.client.lr, other.defense[0].parameters, scenario.client.lr
            (0.05, {'smoothing': 0.2}, 0.1)
        """
        values = self.model_dump()
        make_room(values, changes)
        for path, value in changes.items():
            change(values, path, copy.deepcopy(value))
        return type(self).parse(values)

    def to_json(self) -> str:
        """Return the resolved scenario as canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def determining(self) -> dict[str, Any]:
        """Return, as plain values, all that determines the records."""
        values = self.model_dump(mode="json", exclude=_NOT_IN_RECORDS)
        return values | _rounds_if_combined(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return a hash of all that determines the records.

        It doesn't depend on the name, the number of images kept, the engine or the trackers, nor
        on the number of rounds unless an attack takes them together.
        """
        values = self.determining()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        # Of what costs nothing to read: memories of scenarios are asked for every message.
        return hash((self.seed, self.rounds, self.data.name, self.data.clients, self.model.name))
