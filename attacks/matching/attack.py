"""What every image attack by optimisation does alike: labels, starts, the best, the verdict."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from attacks.answers import LabelRecovery, Reconstruction, Status
from attacks.devices import device_named
from attacks.matching.answer import spread_of_copies, verdict_on, write_answer
from attacks.matching.determined import evidence_for
from attacks.matching.evaluation import Given, Problem
from attacks.matching.models import Local, epochs_apart, is_order_guessed, model_of
from attacks.matching.objectives import Distance, EpochAgreement, Prior
from attacks.matching.optimisers import Optimiser
from attacks.matching.restarts import Restarts, Starts
from attacks.matching.schedules import Schedule
from attacks.matching.search import Stop
from attacks.matching.unknowns import Unknowns
from attacks.types import GradientLeak, ImageAttack, NotApplicable
from attacks.victim.batch_norm import Statistics
from attacks.victim.differentiable import DifferentiableVictim
from attacks.victim.network import Network
from attacks.victim.require import require_values

Labels = Literal["auto", "given", "free"]
Precision = Literal["float32", "float64"]


@dataclass(frozen=True, eq=False)
class Setup:
    """What a method looks at beside the gradient.

    Args:
        distance: of gradients.
        priors: of images.
        watched: layers whose inputs priors look at.
        features: (N, D), the recovered ones, where a prior takes them.
        has_length: (N,), 1 where a feature's length is known, 0 where its direction alone is.
        statistics: batch norm layer -> mean (C,) and variance (C,), where a prior takes them.
    """

    distance: Distance
    priors: tuple[Prior, ...] = ()
    watched: tuple[str, ...] = ()
    features: Tensor | None = None
    has_length: Tensor | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True)
class GradientMatching(ImageAttack):
    """Look for images whose gradient is the one that was sent.

    The best of all starts is the one with the least objective: the truth is never asked. Images
    are pixels in [0, 1]; where the leak doesn't say how the client's loader normalises, the model
    is taken to do so itself.

    Args:
        iterations: gradient evaluations of a start, at least 1.
        restarts: starts, at least 1; they run together, as one.
        labels: "given", as the label attack has them, soft ones too; "free", looked for along with
            the images; or "auto", given where the label attack has one for every example.
        local: the model of several local steps: "unrolled", "surrogate" or "naive"; see
            `attacks.matching.models`.
        epoch_weight: of how far epochs' images may differ as a set, at least 0, where several
            epochs went through the examples in orders that nobody tells.
        patience: iterations without a better loss, at the last step length, that end the search.
        seconds: most time, or None; with it, two runs may differ.
        precision: of the search, "float32" or "float64".
        is_compiled: whether a C++ compiler makes machine code of the objective first, which takes
            about a minute and pays from some ten thousand iterations on.
        device: what searches: "auto", a GPU where there is one, "cpu", "cuda", "cuda:N" or "mps".
            On a GPU two runs may differ by its rounding.

    Raises:
        ValueError: a value is out of its range.
    """

    iterations: int = 4800
    restarts: int = 1
    labels: Labels = "auto"
    local: Local = "unrolled"
    epoch_weight: float = 30.0
    patience: int = 400
    seconds: float | None = None
    precision: Precision = "float32"
    is_compiled: bool = False
    device: str = "auto"

    is_long: ClassVar[bool] = True
    """An attack that takes minutes."""

    def __post_init__(self) -> None:
        for name in ("iterations", "restarts", "patience"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, found {value!r}")
        require_one_of("labels", self.labels, get_args(Labels))
        require_one_of("local", self.local, get_args(Local))
        require_one_of("precision", self.precision, get_args(Precision))
        if not self.epoch_weight >= 0:
            raise ValueError(f"epoch_weight must be at least 0, found {self.epoch_weight}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0 or None, found {self.seconds}")
        if device_named(self.device).type == "mps" and self.precision == "float64":
            raise ValueError("precision must be float32 on the device mps, found float64")

    @abc.abstractmethod
    def setup(
        self, leak: GradientLeak, labels: LabelRecovery, victim: DifferentiableVictim
    ) -> Setup:
        """Return the objective; raise `NotApplicable` where what it needs isn't there."""

    @property
    @abc.abstractmethod
    def optimiser(self) -> Optimiser:
        """What moves the images."""

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """How far it moves them."""

    is_boxed: ClassVar[bool] = True
    """Whether images stay in [0, 1] on the way."""

    @property
    def _restarts(self) -> Restarts:
        stop = Stop(self.iterations, self.patience, seconds=self.seconds)
        device = device_named(self.device)
        return Restarts(
            self.restarts, self.optimiser, self.schedule, stop, self.is_compiled, device
        )

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Search from several starts, take the best, and see what the gradient says of it."""
        problem = self._problem(leak, labels, getattr(torch, self.precision))
        (found,) = self._restarts.search([problem], [generator])
        return self._answer(leak, labels, problem, found, generator)

    def onwards(
        self,
        leak: GradientLeak,
        labels: LabelRecovery,
        images: Tensor,
        *,
        generator: torch.Generator,
    ) -> Reconstruction:
        """Search on from images, as an exact attack that noise kept from the end leaves them.

        Args:
            leak: as for `reconstruct`.
            labels: likewise.
            images: (N, C, H, W), pixels; NaN where there are none. The first start sets out from
                them, the others from noise.
            generator: likewise.

        Raises:
            ValueError: there aren't as many images as examples.
        """
        problem = self._problem(leak, labels, getattr(torch, self.precision))
        expected = (problem.unknowns.examples, *leak.input_shape)
        if images.shape != expected:
            raise ValueError(f"images must have the shape {expected}, found {tuple(images.shape)}")
        (found,) = self._restarts.search([replace(problem, start=images)], [generator])
        return self._answer(leak, labels, problem, found, generator)

    def together(
        self,
        leaks: Sequence[GradientLeak],
        labels: Sequence[LabelRecovery],
        generators: Sequence[torch.Generator],
    ) -> list[Reconstruction]:
        """Attack several clients of one model as one search, which takes less time.

        The search goes on until nobody's loss gets better.

        Args:
            leaks: of one model, in one number of examples and steps.
            labels: of each.
            generators: likewise; the starts are those that each would draw alone.

        Raises:
            NotApplicable: what is said of one of them.
            ValueError: they are of several models, or not alike.
        """
        dtype = getattr(torch, self.precision)
        pairs = list(zip(leaks, labels, strict=True))
        problems = [self._problem(leak, known, dtype) for leak, known in pairs]
        kinds = {
            (id(leak.model), leak.mode, leak.steps, problem.unknowns, frozenset(leak.gradients))
            for leak, problem in zip(leaks, problems, strict=True)
        }
        if len(kinds) != 1:
            raise ValueError(
                "clients that are attacked together must have one model, and alike numbers of "
                f"examples, steps and known labels, found {len(kinds)} kinds"
            )
        found = self._restarts.search(problems, generators)
        return [
            self._answer(leak, known, problem, one, generator)
            for (leak, known), problem, one, generator in zip(
                pairs, problems, found, generators, strict=True
            )
        ]

    def _answer(
        self,
        leak: GradientLeak,
        labels: LabelRecovery,
        problem: Problem,
        found: Starts,
        generator: torch.Generator,
    ) -> Reconstruction:
        order = found.losses.argsort(stable=True)
        if not found.losses[order[0]].isfinite():
            reason = f"the objective wasn't finite at any of {2 * self.restarts} starts"
            return write_answer(
                problem.unknowns, None, Status.NOT_CONVERGED, reason, found.evaluations
            )
        rows = problem.unknowns.settle(found.rows[order]).double()
        exact = self._problem(leak, labels, torch.float64)
        row = rows[0]
        is_vouched = labels.status is Status.RECOVERED and not is_order_guessed(leak)
        if exact.given.labels is not None and not is_vouched:
            # Nobody vouches for them, or for the steps that they were in: the images must follow
            # from the gradient with labels free.
            logits = problem.unknowns.copied(exact.given.labels).clamp(min=1e-12).log().reshape(-1)
            end = problem.unknowns.pixels
            row = torch.cat([row[:end], logits, row[end:]])
            exact = replace(exact, unknowns=replace(exact.unknowns, has_labels=True))
        evidence = evidence_for(exact, row, leak, generator)
        status, why, error = verdict_on(evidence, found, spread_of_copies(problem.unknowns, row))
        return write_answer(
            problem.unknowns, rows, status, why, found.evaluations, evidence.misfit, error
        )

    def _problem(self, leak: GradientLeak, labels: LabelRecovery, dtype: torch.dtype) -> Problem:
        require_values(leak)
        victim = DifferentiableVictim.of(leak, dtype)
        examples = _examples(leak, labels)
        known = self._given(labels, examples)
        unknowns = Unknowns(
            examples,
            leak.input_shape,
            Network.of(leak).head.out_features,
            has_labels=known is None,
            has_position=leak.local_steps > 1 and self.local == "surrogate",
            is_boxed=self.is_boxed,
            epochs=epochs_apart(leak) if self.local == "unrolled" else 1,
        )
        setup = self.setup(leak, labels, victim)
        told = (known, setup.features, setup.has_length, setup.statistics)
        given = Given(victim.target, *tree_map_only(Tensor, lambda part: part.to(dtype), told))
        model = model_of(leak, examples, self.local)
        priors = setup.priors
        if unknowns.epochs > 1:
            priors = (*priors, EpochAgreement(self.epoch_weight, unknowns.epochs))
        return Problem(victim, given, model, unknowns, setup.distance, priors, setup.watched)

    def _given(self, labels: LabelRecovery, examples: int) -> Tensor | None:
        """Return labels (N, K) as the label attack has them; None where they are looked for.

        Raises:
            NotApplicable: they have to be given, and one is missing.
        """
        if self.labels == "free":
            return None
        known = labels.labels
        if known is not None and known.isfinite().all() and len(known) == examples:
            return known.detach()
        if self.labels == "given":
            raise NotApplicable(
                "a label has to be given for every image, and the label attack doesn't have them "
                "all; with labels = 'free' they are looked for along with the images"
            )
        return None


def _examples(leak: GradientLeak, labels: LabelRecovery) -> int:
    """Return how many images are looked for.

    Steps that draw their batches anew are taken never to draw an example twice.
    """
    if leak.steps.distinct is not None:
        return leak.steps.distinct
    if labels.examples:
        return len(labels.examples)
    if leak.local_steps > 1 and leak.schedule == "steps" and leak.processed is not None:
        return leak.processed
    return labels.batch_size or 1


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless an option is one of its values."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, found {value!r}")
