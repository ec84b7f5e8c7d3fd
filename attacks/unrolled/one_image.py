"""One example and several steps of a network with convolutions: its image by simulated training.

[ours] All layers' weights after every step follow from the image and its label. These are unknown,
some hundreds of numbers, and the update holds thousands: Gauss-Newton, as for fully connected
networks (`attacks.unrolled.refine`), but with the image itself for unknowns, since a convolution's
update lies in no span of an example's. Derivatives go forward through the training, a pixel a
direction; of the equations some times as many as there are unknowns are taken, drawn at random, and
in the end all are tested.

A factor on the update, as a learning rate that was told wrongly leaves, is another label's in each
step alone: nearly another label's where steps are short. So labels are held to be equal in all but
two entries, which such a label isn't.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn import Conv2d

from attacks.matching.determined import COMPUTED
from attacks.matching.models import Unrolled
from attacks.matching.unknowns import Candidate
from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.models import label_ways, tied_labels
from attacks.unrolled.refine import Model
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.tangents import Directions
from attacks.victim.differentiable import DifferentiableVictim
from attacks.victim.network import Network

MOST_PIXELS = 1024
"""Of an image: a step of Gauss-Newton takes a derivative for each."""
EQUATIONS = 8
"""Taken for each unknown."""
FEWEST_EQUATIONS = 3
"""For each unknown, from which a training that was told wrongly is sure to show."""
DIRECTIONS_AT_ONCE = 64


def has_convolutions(network: Network) -> bool:
    """Say whether a convolution is among a network's layers."""
    return any(isinstance(call.module, Conv2d) for call in network.trace)


def require_no_convolution(network: Network) -> None:
    """Raise unless all layers are linear ones.

    Raises:
        NotApplicable: there is a convolution.
    """
    if has_convolutions(network):
        raise NotApplicable(
            "the network has convolutions: of several local steps r-gap and relu-fit take such"
        )


@dataclass(frozen=True, eq=False)
class ImageEquations:
    """The update as equations on one image and its label, in units of rounding.

    Args:
        victim: the network, in float64.
        training: its steps.
        shape: (C, H, W).
        scale: the inverse of each entry's rounding, (M,).
        taken: indices of the equations that steps are computed from.
    """

    victim: DifferentiableVictim
    training: Unrolled
    shape: tuple[int, int, int]
    scale: Tensor
    taken: Tensor

    @classmethod
    def of(cls, leak: GradientLeak, classes: int) -> ImageEquations:
        """Take a leak of several steps on one example.

        Raises:
            NotApplicable: it isn't one, the network can't be repeated, or equations are few.
        """
        optimizer, lr = leak.optimizer, leak.lr
        if lr is None or optimizer is None or leak.update_dtype is None:
            raise NotApplicable("that takes the weights that came back, and their learning rate")
        if leak.steps.distinct != 1:
            told = "is" if leak.steps.distinct is None else f"are {leak.steps.distinct}, and is"
            raise NotApplicable(
                f"convolutions are repeated on one example, and the number of examples {told} "
                "not told to be 1"
            )
        pixels = math.prod(leak.input_shape)
        if pixels > MOST_PIXELS:
            raise NotApplicable(
                f"the image has {pixels} pixels, and at most {MOST_PIXELS} are tried"
            )
        victim = DifferentiableVictim.of(leak)
        training = Unrolled(optimizer, lr, ((0,),) * leak.local_steps)
        rounding = [
            _rounding(leak, name, sent).expand(sent.numel()) for name, sent in victim.target.items()
        ]
        sent = torch.cat([part.flatten() for part in victim.target.values()])
        live, unknowns = sent.nonzero()[:, 0], pixels + classes
        if len(live) < FEWEST_EQUATIONS * unknowns:
            raise NotApplicable(
                f"the update holds {len(live)} equations for {unknowns} unknowns, and "
                f"{FEWEST_EQUATIONS} times as many are asked for"
            )
        order = torch.randperm(len(live), generator=torch.Generator().manual_seed(0))
        taken = live[order[: EQUATIONS * unknowns]]
        return cls(victim, training, leak.input_shape, 1 / torch.cat(rounding), taken)

    @property
    def size(self) -> float:
        """Root mean square of what is to be met."""
        return float((self.sent * self.scale)[self.taken].square().mean().sqrt())

    @cached_property
    def sent(self) -> Tensor:
        """The update over the learning rate, (M,)."""
        return torch.cat([part.flatten() for part in self.victim.target.values()])

    def residuals(self, client: Unknowns) -> Tensor:
        """Return the residuals of the equations that are taken."""
        return self.all_residuals(client)[self.taken]

    def all_residuals(self, client: Unknowns) -> Tensor:
        """Return the residuals (M,) of all."""
        with torch.no_grad():
            found = self._update(client.inputs, client.labels)
        return (found - self.sent) * self.scale

    def linearised(self, model: Model, client: Unknowns) -> tuple[Tensor, Tensor]:
        """Return the residuals and their derivatives (…, P)."""
        at, ways = (client.inputs, client.labels), model.directions
        scale = self.scale[self.taken]

        def along(pixels: Tensor, label: Tensor) -> Tensor:
            moved: Tensor = jvp(self._update, at, (pixels[None], label[None]))[1]
            return moved[self.taken] * scale

        with torch.no_grad(), warnings.catch_warnings():
            # When first used, forward mode runs PyTorch's own deprecated compiler.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            rows = vmap(along, chunk_size=DIRECTIONS_AT_ONCE)(ways.inputs[0].T, ways.labels[0].T)
        return self.residuals(client), rows.T.contiguous()

    def cost(self, model: Model) -> float:
        """Return about how many multiplications `linearised` and a step take."""
        count = model.directions.inputs.shape[2]
        weights = sum(part.numel() for part in self.victim.parameters.values())
        places = math.prod(self.shape[1:])
        each = 3.0 * len(self.training.batches) * weights * places**0.5
        return float(count * each + len(self.taken) * count**2)

    def model_at(self, start: Unknowns) -> Model:
        """Return a free image's model, with a label equal in all but its two largest entries."""
        labels = tied_labels(start.labels)
        ways = label_ways(labels[0], is_tied=True).T
        pixels, count = start.inputs.shape[1], ways.shape[1]
        of_inputs = torch.zeros(1, pixels, pixels + count, dtype=torch.float64)
        of_inputs[0, :, :pixels] = torch.eye(pixels, dtype=torch.float64)
        of_labels = torch.cat([torch.zeros(len(ways), pixels, dtype=torch.float64), ways], dim=1)
        shares = torch.zeros(*start.shares.shape, pixels + count, dtype=torch.float64)
        start = Unknowns(start.inputs, labels, start.shares)
        return Model(start, Directions(of_inputs, of_labels[None], shares))

    def _update(self, pixels: Tensor, labels: Tensor) -> Tensor:
        candidate = Candidate(pixels.reshape(1, *self.shape), labels, None)
        found, _ = self.training(self.victim, candidate, ())
        return torch.cat([found[name].flatten() for name in self.victim.target])


def _rounding(leak: GradientLeak, name: str, sent: Tensor) -> Tensor:
    """Return what every step's rounding does to a parameter's gradient, root mean square."""
    weights = leak.rounding(name).square().mean() * leak.local_steps
    eps = torch.finfo(leak.model.get_parameter(name).dtype).eps
    return (weights + (COMPUTED * eps) ** 2 * sent.square().mean()).sqrt().clamp(min=1e-300)
