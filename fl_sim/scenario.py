"""A scenario: everything that determines a run, read from TOML and validated."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, Registry
from attacks.registry import nearest
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS
from fl_sim.errors import UserError

STRATEGIES = ("fedavg", "fedadam")
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _registered(name: str, registry: Registry) -> str:
    if name not in registry and ":" not in name:
        raise ValueError(f"unknown {registry.kind} {name!r}{nearest(name, registry)}")
    return name


class Data(_Section):
    """`[data]`: the data set and how it is split over clients."""

    name: str = "mnist-5k"
    clients: Positive = 10
    partition: Literal["iid", "dirichlet", "pathological"] = "iid"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    classes: Positive = 2
    test_examples: Positive = 1000
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, DATASETS)


class Model(_Section):
    """`[model]`: the network."""

    name: str = "fcn4"
    bias: bool = False
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, MODELS)


class Client(_Section):
    """`[client]`: local training."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: Positive = 1
    local_steps: Positive = 1
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    mode: Literal["eval", "train"] = "eval"

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Client:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, found 0.0")
        return self


class Server(_Section):
    """`[server]`: the strategy that aggregates, with its options."""

    strategy: str = "fedavg"
    options: dict[str, Any] = {}

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES and ":" not in name:
            raise ValueError(f"unknown strategy {name!r}{nearest(name, list(STRATEGIES))}")
        return name


class DefenseStage(BaseModel):
    """One `[[defense]]`: a name, and the defense's own parameters beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, DEFENSES)

    @model_validator(mode="after")
    def _builds(self) -> DefenseStage:
        if self.name in DEFENSES:
            DEFENSES.build(self.name, **self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The defense's keyword arguments."""
        return dict(self.model_extra or {})


class Every(_Section):
    """`{ every = n }`: rounds n, 2n, 3n, …"""

    every: Positive


class Attack(_Section):
    """One `[[attack]]`: who is attacked when, by what."""

    label: str = "soft-label"
    image: str | None = None
    attacker: Literal["unaware", "aware"] = "unaware"
    rounds: Literal["all"] | list[Positive] | Every = "all"
    clients: Literal["all"] | list[Annotated[int, Field(ge=0)]] = "all"
    label_options: dict[str, Any] = {}
    image_options: dict[str, Any] = {}

    @field_validator("label")
    @classmethod
    def _known_label(cls, name: str) -> str:
        return _registered(name, LABEL_ATTACKS)

    @field_validator("image")
    @classmethod
    def _known_image(cls, name: str | None) -> str | None:
        return None if name is None else _registered(name, IMAGE_ATTACKS)

    def covers(self, server_round: int, client: int) -> bool:
        """Say whether this attack runs on a client in a round."""
        if isinstance(self.rounds, Every):
            in_round = server_round % self.rounds.every == 0
        else:
            in_round = self.rounds == "all" or server_round in self.rounds
        return in_round and (self.clients == "all" or client in self.clients)


class Scenario(_Section):
    """A whole run. Build one with `load`, or from keyword arguments."""

    name: str = "scenario"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rounds: Positive = 10
    engine: Literal["local"] = "local"
    device: str = "auto"
    images: Annotated[int, Field(ge=0)] = 20
    data: Data = Data()
    model: Model = Model()
    client: Client = Client()
    server: Server = Server()
    defense: list[DefenseStage] = []
    attack: list[Attack] = []

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Scenario:
        """Validate a mapping.

        Raises:
            UserError: names the first key that is wrong, the rule and the value found.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(_sentence(error, values)) from error

    @classmethod
    def load(
        cls, path: Path, overrides: Sequence[str] = (), *, seed: int | None = None
    ) -> Scenario:
        """Read a TOML file, with `key.path=value` overrides.

        Raises:
            UserError: the file is missing or isn't TOML, or a key or value is wrong.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"scenario {path} can't be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"scenario {path} isn't valid TOML: {error}") from error
        values.setdefault("name", path.stem)
        for override in overrides:
            _override(values, override)
        if seed is not None:
            values["seed"] = seed
        return cls.parse(values)

    def to_json(self) -> str:
        """Return the resolved scenario as canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def digest(self) -> str:
        """Return a hash of all that determines the records."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _override(values: dict[str, Any], override: str) -> None:
    """Apply `key.path=value`; a number in the path indexes a list, as in `defense.0.smoothing`."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set must be key.path=value, found {override!r}")
    target: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not (key.isdigit() and int(key) < len(target)):
                raise UserError(
                    f"--set {path}: {key!r} must be an index below {len(target)}, the number of "
                    f"[[{'.'.join(keys[:depth])}]] tables"
                )
            slot: Any = int(key)
        elif isinstance(target, dict):
            slot = key
            if not last:
                target.setdefault(key, {})
        else:
            raise UserError(f"--set {path}: {'.'.join(keys[:depth])!r} has no keys of its own")
        if last:
            target[slot] = _value(text.strip())
        else:
            target = target[slot]


def _value(text: str) -> Any:
    """Read a TOML value; anything that isn't one is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Turn the first validation error into one sentence: the key, the rule, the value found."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part in ("all",) or not _is_union_tag(part)]
    key = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        section = _model_at(place[:-1])
        known = nearest(str(place[-1]), section) if section else ""
        return f"unknown key {key!r}{known}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{key}: {message}" if key else message
    rule = first["msg"].removeprefix("Input ").rstrip(".")
    return f"{key}: {rule}, found {first['input']!r}"


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part.startswith(("literal[", "list[")) or part == "Every")


def _model_at(place: Sequence[int | str]) -> list[str] | None:
    sections: dict[str, type[BaseModel]] = {
        "data": Data,
        "model": Model,
        "client": Client,
        "server": Server,
        "attack": Attack,
    }
    if not place:
        return list(Scenario.model_fields)
    section = sections.get(str(place[0]))
    return list(section.model_fields) if section else None
