"""What `r-gap` and `relu-fit` do alike: invert one step, repeat several."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.answers import LabelRecovery, Reconstruction
from attacks.convolution.inversion import ChainInversion
from attacks.convolution.stages import Stage, read_chain
from attacks.types import GradientLeak
from attacks.unrolled.answer import images_of_steps
from attacks.victim.network import Network
from attacks.victim.require import require_values


@dataclass(frozen=True)
class ConvolutionalInversion(ChainInversion):
    """Invert a chain of convolutions after one step; of several, on one example, repeat them.

    Arguments, errors and what an answer says: those of `ChainInversion`.
    """

    @staticmethod
    @abc.abstractmethod
    def require(stages: Sequence[Stage]) -> None:
        """Raise unless convolutions, the lowest first, are the method's.

        Raises:
            NotApplicable: their activations are another's.
        """

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Repeat several steps; invert one."""
        if leak.local_steps == 1:
            return super().reconstruct(leak, labels, generator)
        require_values(leak)
        self.require([stage for stage in read_chain(leak).body if not stage.is_linear])
        return images_of_steps(leak, Network.of(leak), labels, tolerance=self.tolerance)
