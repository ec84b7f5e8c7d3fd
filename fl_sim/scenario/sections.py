"""The tables of a scenario."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from attacks import IMAGE_ATTACKS, LABEL_ATTACKS, Registry
from attacks.registry import nearest
from defenses import DEFENSES
from fl_sim import DATASETS, MODELS, TRACKERS
from fl_sim.optimizers import Name as Optimizer

STRATEGIES = ("fedavg", "fedadam", "krum")
LEAST_CANARIES = 5
STEPS_OR_EPOCHS = ("local_steps", "local_epochs")


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
_COUNT = "a whole number of at least 1"
Options = Annotated[dict[str, Any], AfterValidator(_plain)]


class Section(BaseModel):
    """A table: frozen, without unknown keys, and without conversions of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _registered(name: str, registry: Registry) -> str:
    if name not in registry and ":" not in name:
        raise ValueError(f"unknown {registry.kind} {name!r}{nearest(name, registry)}")
    return name


class Data(Section):
    """`[data]`: the data set and how it is split over clients."""

    name: str = "mnist-5k"
    clients: Positive = 10
    partition: Literal["iid", "dirichlet", "pathological"] = "iid"
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="a number above 0"
    )
    classes: Positive | None = Field(default=None, description=_COUNT)
    examples_per_client: Positive | None = Field(default=None, description=_COUNT)
    test_examples: Positive | None = Field(default=None, description=_COUNT)
    options: Options = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, DATASETS)

    @model_validator(mode="after")
    def _partition_reads(self) -> Data:
        for key, partition in (("alpha", "dirichlet"), ("classes", "pathological")):
            found = getattr(self, key)
            if found is not None and self.partition != partition:
                raise ValueError(
                    f"{key} belongs to partition {partition!r}, found {found} with partition "
                    f"{self.partition!r}"
                )
        return self


class Model(Section):
    """`[model]`: the network."""

    name: str = "fcn4"
    bias: bool = False
    init: str = "default"
    options: Options = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, MODELS)


class Client(Section):
    """`[client]`: local training; so many steps or so many epochs, 1 step without either."""

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    batch_size: Positive = 1
    local_steps: Positive | None = Field(default=None, description=_COUNT)
    local_epochs: Positive | None = Field(default=None, description=_COUNT)
    lr: Annotated[float, Field(gt=0)] = 0.1
    optimizer: Optimizer = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    mode: Literal["eval", "train"] = "eval"

    @model_validator(mode="before")
    @classmethod
    def _one_step(cls, values: Any) -> Any:
        """Put the default in, so that a resolved scenario says how long clients train."""
        if isinstance(values, dict) and all(values.get(key) is None for key in STEPS_OR_EPOCHS):
            return {**values, "local_steps": 1}
        return values

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Client:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError(
                "local_epochs take the place of local_steps: leave one out, found "
                f"{self.local_epochs} and {self.local_steps}"
            )
        return self

    @model_validator(mode="after")
    def _momentum_fits(self) -> Client:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, found 0.0")
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is SGD's, found {self.momentum:g} with optimizer {self.optimizer!r}"
            )
        return self


class Server(Section):
    """`[server]`: the strategy that aggregates, and what is done with updates after the round."""

    strategy: str = "fedavg"
    options: Options = {}
    capture: bool = False
    attack_jobs: Positive | None = Field(default=None, description=_COUNT)
    attack_queue: Positive = 1000
    secure_aggregation: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="a whole number of at least 2"
    )

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES and ":" not in name:
            raise ValueError(f"unknown strategy {name!r}{nearest(name, list(STRATEGIES))}")
        return name

    @model_validator(mode="after")
    def _sums_are_enough(self) -> Server:
        if self.secure_aggregation is None:
            return self
        if self.capture:
            raise ValueError(
                "capture keeps single updates, which secure_aggregation hides: leave one out, "
                f"found true and {self.secure_aggregation}"
            )
        if self.strategy == "krum":
            raise ValueError(
                "strategy 'krum' compares single updates, which secure_aggregation hides: leave "
                f"one out, found secure_aggregation = {self.secure_aggregation}"
            )
        return self


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


class TrackerStage(BaseModel):
    """One `[[tracker]]`: a name, and the tracker's own options beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    name: str

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _registered(name, TRACKERS)

    @model_validator(mode="after")
    def _options_are_plain(self) -> TrackerStage:
        _plain(self.options)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The tracker's keyword arguments."""
        return dict(self.model_extra or {})


class Privacy(Section):
    """`[privacy]`: how ε is stated, and how far it may go."""

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    epsilon_target: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="a number above 0"
    )


class Audit(Section):
    """`[audit]`: whether the run's own promise of privacy is looked into."""

    canaries: Annotated[int, Field(ge=0)] = 0

    @field_validator("canaries")
    @classmethod
    def _say_something(cls, canaries: int) -> int:
        if 0 < canaries < LEAST_CANARIES:
            raise ValueError(
                f"must be 0 or at least {LEAST_CANARIES}, since fewer bound nothing at 95 % "
                f"confidence, found {canaries}"
            )
        return canaries


class Every(Section):
    """`{ every = n }`: rounds n, 2n, 3n and so on."""

    every: Positive


class Attack(Section):
    """One `[[attack]]`: who is attacked when, by what; in the round, after it, or all together."""

    label: str = "soft-label"
    image: str | None = None
    attacker: Literal["unaware", "aware"] = "unaware"
    rounds: Literal["all"] | list[Positive] | Every = Field(
        "all", description='"all", a list of round numbers (from 1) or { every = n }'
    )
    clients: Literal["all"] | list[Annotated[int, Field(ge=0)]] = Field(
        "all", description='"all" or a list of client numbers (from 0)'
    )
    when: Literal["round", "after"] | None = Field(default=None, description='"round" or "after"')
    combine: Literal["rounds"] | None = Field(default=None, description='"rounds"')
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

    @model_validator(mode="after")
    def _options_are_read(self) -> Attack:
        if self.image is None and self.image_options:
            raise ValueError(
                f"image_options belong to an image attack, found {self.image_options} without one"
            )
        return self

    @model_validator(mode="after")
    def _combined_after(self) -> Attack:
        if self.combine is not None and self.when == "round":
            raise ValueError(
                "combine takes rounds together after the last one, found it with when = 'round'"
            )
        return self

    def covers(self, server_round: int, client: int) -> bool:
        """Say whether this attack runs on a client in a round."""
        if isinstance(self.rounds, Every):
            in_round = server_round % self.rounds.every == 0
        else:
            in_round = self.rounds == "all" or server_round in self.rounds
        return in_round and (self.clients == "all" or client in self.clients)
