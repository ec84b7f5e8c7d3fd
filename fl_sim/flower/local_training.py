"""How clients train, as the server that configured them knows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from attacks.training import SCHEDULES, SGD, Named, Steps
from attacks.types import Mode
from fl_sim.optimizers import NAMES, TITLES

Sends = Literal["weights", "difference", "gradient"]


@dataclass(frozen=True)
class LocalTraining:
    """How clients train, as the server that configured them knows it.

    Args:
        lr: learning rate, above 0.
        batch_size: B; None when the clients choose it.
        local_steps: optimizer steps a round, at least 1; a client that reports another number as
            the metric `num-steps` is taken at its word.
        local_epochs: passes over a client's examples a round, in shuffled batches of which the last
            may be smaller, instead of local_steps; None: the steps are told. How many steps that
            are follows from the examples that a client reports as `num-examples`.
        schedule: what is told of which examples each step takes: "full-batch", all that there are;
            "steps", a batch drawn anew; "epochs", where steps and examples are told; None: nothing.
        examples: that a client trains on in a round, all steps together; None: not told.
        optimizer: "sgd", "adam", "adamw", "rmsprop" or "adagrad", with PyTorch's defaults.
        momentum: μ in [0, 1), of SGD.
        nesterov: whether the momentum is Nesterov's.
        dampening: τ in [0, 1], of the momentum.
        weight_decay: wd, at least 0; PyTorch's AdamW has 0.01 unless it is told otherwise.
        mode: of batch norm and dropout.
        fresh_optimizer: whether the optimizer's state starts anew in every round.
        sends: what a reply's arrays are: the "weights", the "difference" of the new weights and
            those received, or the "gradient" itself (over several steps, their sum).

    Raises:
        ValueError: a value is out of its range, or two don't go together.
    """

    lr: float
    batch_size: int | None = None
    local_steps: int = 1
    local_epochs: int | None = None
    schedule: Named | None = None
    examples: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0
    mode: Mode = "eval"
    fresh_optimizer: bool = True
    sends: Sends = "weights"

    def __post_init__(self) -> None:
        for name in ("batch_size", "local_steps", "local_epochs", "examples"):
            value = getattr(self, name)
            if not (value is None and name != "local_steps") and not (
                isinstance(value, int) and value >= 1
            ):
                raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, found {value!r}")
        for name, known in (
            ("optimizer", NAMES),
            ("mode", get_args(Mode)),
            ("sends", get_args(Sends)),
            ("schedule", (*SCHEDULES, None)),
        ):
            if getattr(self, name) not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {names}, found {getattr(self, name)!r}")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.momentum > 0 and self.optimizer != "sgd":
            raise ValueError(
                f"momentum is SGD's, found {self.momentum:g} with optimizer {self.optimizer!r}"
            )
        _ = self._sgd
        plain = self.optimizer == "sgd" and self.momentum == 0 and self.weight_decay == 0
        if self.sends == "gradient" and not plain:
            raise ValueError(
                "a gradient that is sent as such hasn't been through an optimizer: leave out "
                "optimizer, momentum and weight_decay"
            )
        if self.local_epochs is None:
            Steps(self.local_steps, self.batch_size, self.examples, self.schedule)
            return
        if self.local_steps != 1:
            raise ValueError(
                "local_epochs take the place of local_steps: leave one out, found "
                f"{self.local_epochs} and {self.local_steps}"
            )
        if self.schedule is not None:
            raise ValueError(
                f"local_epochs are a schedule of their own: leave schedule out, found "
                f"{self.schedule!r}"
            )

    @property
    def _sgd(self) -> SGD:
        return SGD(self.lr, self.momentum, self.nesterov, self.dampening, self.weight_decay)

    def of_client(self, *, examples: int | None = None, steps: int | None = None) -> LocalTraining:
        """Return how one client trained, by what it reports: its steps in place of epochs.

        Args:
            examples: that it trained on; None where it doesn't say. Read where epochs are told:
                with steps, some clients count an example at every use, others their whole share.
            steps: that it took; None where it doesn't say.

        Raises:
            ValueError: the steps of its epochs can't be known.
        """
        if self.local_epochs is None:
            return self if steps in (None, self.local_steps) else self._with_steps(steps)
        size, examples = self.batch_size, self.examples if examples is None else examples
        if size is None or examples is None:
            if steps is None:
                raise ValueError(
                    "local_epochs tell the steps only with batch_size and the examples of a client "
                    f"(metric 'num-examples'), or with num-steps, found {size} and {examples}"
                )
            return self._with_steps(steps)
        size = min(size, examples)
        own = self.local_epochs * -(-examples // size)
        if steps not in (None, own):
            return self._with_steps(steps)
        return dataclasses.replace(
            self,
            local_epochs=None,
            local_steps=own,
            schedule="full-batch" if size == examples else "epochs",
            batch_size=size,
            examples=examples,
        )

    def _with_steps(self, steps: int) -> LocalTraining:
        """Return other steps than were told: of whose batches less is known.

        A client that drops the last batch of an epoch may leave examples out.
        """
        schedule = None if self.schedule == "epochs" else self.schedule
        return dataclasses.replace(
            self, local_epochs=None, local_steps=steps, schedule=schedule, examples=None
        )

    def obstacle(self, server_round: int) -> str | None:
        """Say why an update of this round is no gradient, nor a sum of them, nor their signs."""
        title = TITLES[self.optimizer]
        if self.optimizer == "sgd":
            if self.momentum > 0 and not self.fresh_optimizer and server_round > 1:
                return (
                    f"the update carries momentum ({self.momentum:g}) from earlier rounds, which "
                    "the server doesn't see"
                )
            return None
        if not self.fresh_optimizer and server_round > 1:
            return f"{title} divides each entry by its history of earlier rounds, which isn't sent"
        if self.local_steps > 1:
            return (
                f"{title} divides each entry by its own history: {self.local_steps} steps leave "
                "neither a gradient nor its signs"
            )
        if self.weight_decay > 0 and self.optimizer != "adamw":
            return (
                f"{title} adds the weight decay to the gradient before it divides each entry: what "
                "is left are the signs of both together"
            )
        return None

    def linear_map(self) -> tuple[float, float]:
        """Return A and B with `w_S = A w − B g`, if all S steps had the gradient g."""
        return self._sgd.linear_map(self.local_steps)
