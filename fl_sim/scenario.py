"""A scenario: everything that determines a run, read from TOML and validated."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, Registry
from attacks.registry import nearest
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS
from fl_sim.errors import UserError
from fl_sim.optimizers import Name as Optimizer
from fl_sim.scenario_errors import describe

STRATEGIES = ("fedavg", "fedadam", "krum")
_NOT_IN_RECORDS = {"name", "images", "engine"}


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "must hold finite numbers, strings, booleans, or lists and tables of them, "
            f"found {options}"
        ) from error
    return options


Positive = Annotated[int, Field(ge=1)]
Options = Annotated[dict[str, Any], AfterValidator(_plain)]


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
    test_examples: Positive | None = Field(default=None, description="a whole number of at least 1")
    options: Options = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, DATASETS)


class Model(_Section):
    """`[model]`: the network."""

    name: str = "fcn4"
    bias: bool = False
    options: Options = {}

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
    optimizer: Optimizer = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    mode: Literal["eval", "train"] = "eval"

    @model_validator(mode="after")
    def _momentum_fits(self) -> Client:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, found 0.0")
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is SGD's, found {self.momentum:g} with optimizer {self.optimizer!r}"
            )
        return self


class Server(_Section):
    """`[server]`: the strategy that aggregates, with its options."""

    strategy: str = "fedavg"
    options: Options = {}

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
        _plain(self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The defense's keyword arguments."""
        return dict(self.model_extra or {})


class Privacy(_Section):
    """`[privacy]`: how ε is stated."""

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class Every(_Section):
    """`{ every = n }`: rounds n, 2n, 3n and so on."""

    every: Positive


class Attack(_Section):
    """One `[[attack]]`: who is attacked when, by what."""

    label: str = "soft-label"
    image: str | None = None
    attacker: Literal["unaware", "aware"] = "unaware"
    rounds: Literal["all"] | list[Positive] | Every = Field(
        "all", description='"all", a list of round numbers (from 1) or { every = n }'
    )
    clients: Literal["all"] | list[Annotated[int, Field(ge=0)]] = Field(
        "all", description='"all" or a list of client numbers (from 0)'
    )
    label_options: Options = {}
    image_options: Options = {}

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
    seed: int = Field(0, ge=0, lt=2**63, description="a whole number from 0 to 2**63 - 1")
    rounds: Positive = 10
    engine: Literal["local", "ray"] = "local"
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps)\z",
        description='"auto", "cpu", "cuda", "cuda:N" or "mps"',
    )
    images: Annotated[int, Field(ge=0)] = 20
    data: Data = Data()
    model: Model = Model()
    client: Client = Client()
    server: Server = Server()
    privacy: Privacy = Privacy()
    defense: list[DefenseStage] = Field([], description="tables, each headed [[defense]]")
    attack: list[Attack] = Field([], description="tables, each headed [[attack]]")

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

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Scenario:
        """Validate a mapping.

        Raises:
            UserError: names the first key that is wrong, the rule and the value found.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(describe(error, cls)) from error

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
        for override in overrides:
            _override(values, override)
        if seed is not None:
            values["seed"] = seed
        return cls.parse(values)

    def to_json(self) -> str:
        """Return the resolved scenario as canonical JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def determining(self) -> dict[str, Any]:
        """Return, as plain values, all that determines the records."""
        return self.model_dump(mode="json", exclude=_NOT_IN_RECORDS)

    def digest(self) -> str:
        """Return a hash of all that determines the records.

        It doesn't depend on the name, the number of images kept, or the engine.
        """
        values = self.determining()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scenario) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.digest())


def _override(values: dict[str, Any], override: str) -> None:
    """Apply `key.path=value`; a number in the path indexes a list, as in `defense.0.smoothing`."""
    path, equals, text = override.partition("=")
    path = path.strip()
    keys = path.split(".")
    if not equals or not all(keys):
        raise UserError(f"--set must be key.path=value, found {override!r}")
    target: Any = values
    for depth, key in enumerate(keys[:-1]):
        slot = _slot(target, keys, depth)
        if isinstance(target, dict):
            target.setdefault(key, [] if key in ("attack", "defense") else {})
        target = target[slot]
    target[_slot(target, keys, len(keys) - 1)] = _value(text.strip())


def _slot(target: Any, keys: Sequence[str], depth: int) -> int | str:
    """Return what indexes `target`, the value at `keys[:depth]`, under the next key."""
    key, path, parent = keys[depth], ".".join(keys), ".".join(keys[:depth])
    if isinstance(target, dict):
        return key
    if not isinstance(target, list):
        raise UserError(f"--set {path}: {parent} must be a table, found {target!r}")
    if not (key.isdecimal() and int(key) < len(target)):
        raise UserError(
            f"--set {path}: {key!r} must be the number of an entry of {parent}, counted from 0; "
            f"it has {len(target)}"
        )
    return int(key)


def _value(text: str) -> Any:
    """Read a TOML value; anything that isn't one is a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text
