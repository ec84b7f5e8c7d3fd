"""The victim as a pure function of images, soft labels and weights, to be differentiated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from attacks.types import GradientLeak, NotApplicable
from attacks.victim.gradients import read_gradient
from attacks.victim.network import Network, sharing_copy
from attacks.victim.trace import inputs_of_layers

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class DifferentiableVictim:
    """A leak's model, and the gradient that it sends, differentiable in images and labels.

    Batch norm runs as it did at the client: with the model's statistics, or in train mode with
    those of the batch; no buffer is modified. All of it works under `torch.func`'s transforms.

    Args:
        module: shares its tensors with the leak's model.
        head_name: of the last linear layer.
        parameters: by name, those whose gradients were sent, in the precision of the computation.
        constants: other parameters and floating buffers, likewise.
        target: the gradients that were sent, likewise.
        scale: (C, 1, 1), of the client's loader: `input = (pixel - shift) / scale`.
        shift: (C, 1, 1).
    """

    module: nn.Module
    head_name: str
    parameters: Tensors
    constants: Tensors
    target: Tensors
    scale: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def of(cls, leak: GradientLeak, dtype: torch.dtype = torch.float64) -> DifferentiableVictim:
        """Take a leak's model and gradients.

        Raises:
            NotApplicable: the model has no linear layer at its end, a layer drew at random, or
                gradients aren't finite, or all are zero.
        """
        network = Network.of(leak)
        module = sharing_copy(leak.model)
        if leak.mode == "train":
            _set_train_mode(module)
        _require_repeatable(network)
        target = {
            name: read_gradient(leak, name, "a layer", may_vanish=True).to(dtype)
            for name, parameter in leak.model.named_parameters()
            if name in leak.gradients and parameter.requires_grad
        }
        if not any(gradient.any() for gradient in target.values()):
            raise NotApplicable("there is no gradient to match: all that was sent is zero")
        named = [*module.named_parameters(), *module.named_buffers()]
        values = {n: t.detach().to(dtype) for n, t in named if t.is_floating_point()}
        scale, shift = None, None
        if leak.normalization is not None:
            shift, scale = (
                torch.tensor(part, dtype=dtype)[:, None, None]
                for part in (leak.normalization.mean, leak.normalization.std)
            )
        return cls(
            module,
            network.head_name,
            {name: values[name] for name in target},
            {name: value for name, value in values.items() if name not in target},
            target,
            scale,
            shift,
        )

    def to(self, device: torch.device) -> DifferentiableVictim:
        """Return it with its tensors on a device, the module a copy there; itself, if there."""
        if device == self.device:
            return self

        def moved(parts: Any) -> Any:
            return tree_map_only(Tensor, lambda part: part.to(device), parts)

        return replace(
            self,
            module=copy.deepcopy(self.module).to(device),
            parameters=moved(self.parameters),
            constants=moved(self.constants),
            target=moved(self.target),
            scale=moved(self.scale),
            shift=moved(self.shift),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the computation."""
        return next(iter(self.parameters.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return next(iter(self.parameters.values())).device

    @property
    def size(self) -> int:
        """Entries of the gradient."""
        return sum(gradient.numel() for gradient in self.target.values())

    def forward(
        self, parameters: Tensors, images: Tensor, watched: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K), and what some layers took, by their names.

        Args:
            parameters: by name, of those that are matched.
            images: (B, C, H, W), pixels.
            watched: names of layers.
        """
        if self.scale is not None and self.shift is not None:
            images = (images - self.shift) / self.scale
        found: list[Tensor] = []
        values = {**self.constants, **parameters}
        layers = {name: self.module.get_submodule(name) for name in watched}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention differentiate once
            inputs = inputs_of_layers(
                layers, lambda: found.append(functional_call(self.module, values, (images,)))
            )
        return found[0], inputs

    def gradient(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        parameters: Tensors | None = None,
        watched: Sequence[str] = (),
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradient of the mean cross-entropy, and what some layers took.

        Args:
            images: (B, C, H, W), pixels.
            labels: (B, K), rows on the simplex.
            parameters: at which it is taken; None: those that the client started from.
            watched: names of layers.
        """

        def loss(at: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
            logits, inputs = self.forward(at, images, watched)
            return mean_cross_entropy(logits, labels), inputs

        at = self.parameters if parameters is None else parameters
        gradients, inputs = grad(loss, has_aux=True)(dict(at))
        return gradients, inputs


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `mean_b Σ_k y_bk (log Σ_j exp z_bj − z_bk)` of logits and labels (B, K)."""
    return ((logits.logsumexp(dim=1, keepdim=True) - logits) * labels).sum(dim=1).mean()


def _require_repeatable(network: Network) -> None:
    """Raise unless the network gives the same twice, in eval mode.

    Raises:
        NotApplicable: it draws at random, which can't be repeated.
    """
    images = torch.full((1, *network.input_shape), 0.5)
    one, other = (network.run(images) for _ in range(2))
    if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        raise NotApplicable(
            "the network draws at random in eval mode too: the client's draws can't be repeated"
        )


def _set_train_mode(module: nn.Module) -> None:
    """Let batch norm take the batch's statistics, without keeping them.

    Raises:
        NotApplicable: a layer draws at random, which can't be repeated.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise NotApplicable(
                f"layer {name!r} ({type(layer).__name__}) ran in train mode, whose draws the "
                "server can't repeat"
            )
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.running_mean = layer.running_var = None
            layer.track_running_stats = False
