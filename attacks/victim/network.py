"""A model as an attacker reads it, once: its layers in their order, and the last linear one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.intake import shallow
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.head import find_head
from attacks.victim.kept import kept_with
from attacks.victim.trace import Call, inputs_of_layers, watch

NOISE = 2
"""Random images on which a network is read: two, to tell examples from classes and places."""
PROBES = 8
"""Random images on which the last features are looked at."""


class Network:
    """A view of a leak's model in eval mode that shares its tensors and leaves it as it was.

    `Network.of` reads a leak's model once, however many attacks ask.

    Args:
        leak: its model maps (N, C, H, W) images to (N, K) logits, by a linear layer at the end, or
            to their log-softmax, of which the cross-entropy is the same.

    Attributes:
        module: the view itself.
        linear: name -> every linear layer.
        executed: names of those that ran, in order.
        runs: name -> how often.
        flat: names of those that take one row for each image.
        head_name: of the last one.
        head: that.

    Raises:
        NotApplicable: the output isn't that of one `nn.Linear` used once.
    """

    def __init__(self, leak: GradientLeak) -> None:
        self.input_shape = leak.input_shape
        self.module = sharing_copy(leak.model)
        self.dtype = next(self.module.parameters()).dtype
        self._normalization = leak.normalization
        self.linear = {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}
        images = self._noise(NOISE)
        try:
            logits, calls = watch(self.module, lambda: self.run(images))
        except Exception as error:  # a user's model may raise anything
            line = str(error).partition("\n")[0]
            raise NotApplicable(
                f"the model doesn't take an image of input_shape {leak.input_shape}: {line}"
            ) from error
        outputs = {call.name: call.output for call in calls if call.name in self.linear}
        self.executed = list(outputs)
        self.runs = Counter(call.name for call in calls)
        self.flat = {name for name, z in outputs.items() if z.ndim == 2 and len(z) == NOISE}
        self.head_name = find_head(logits, outputs, NOISE)
        self.head = self.linear[self.head_name]
        self._require_head_alone()

    @classmethod
    def of(cls, leak: GradientLeak) -> Network:
        """Return the view of a leak's model; it is kept with the leak.

        Raises:
            NotApplicable: the output isn't that of one `nn.Linear` used once.
        """
        return kept_with(leak, "_network", lambda: cls(leak))

    def run(
        self,
        images: Tensor,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        with_grad: bool = False,
    ) -> Any:
        """Return the model's output on images (N, C, H, W).

        Args:
            images: pixels, normalised here as the leak says.
            tensors: other values for parameters and buffers, in whose precision it runs; the
                model's own precision without any.
            with_grad: whether the output is to be differentiated.
        """
        given = images if self._normalization is None else self._normalization(images)
        given = given.to(self.dtype) if tensors is None else given
        with torch.set_grad_enabled(with_grad):
            return functional_call(self.module, dict(tensors or {}), (given,))

    @cached_property
    def trace(self) -> tuple[Call, ...]:
        """Every layer's call on a black, a white and two random images, in float64."""
        noise = self._noise(NOISE, torch.float64)
        images = torch.cat([torch.zeros_like(noise[:1]), torch.ones_like(noise[:1]), noise])
        return watch(self.module, lambda: self.run(images, self.double))[1]

    def input_before(self, name: str, images: Tensor) -> Tensor:
        """Return a layer's input on images in float64, without running it: it may be large."""
        layer = self.module.get_submodule(name)
        rest = self._double(but=(*self.executed, name))
        return inputs_of_layers({name: layer}, lambda: self.run(images, rest), is_all=False)[name]

    def inputs_of(
        self,
        names: Sequence[str],
        images: Tensor,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        with_grad: bool = False,
    ) -> dict[str, Tensor]:
        """Return the inputs of linear layers on a batch of images, by name.

        Args:
            names: the layers' module names.
            images: (N, C, H, W) pixels.
            parameters: other values for the parameters and buffers, for another precision.
            with_grad: whether they are to be differentiated by the images.

        Returns:
            Each (N, width of the layer's input).
        """
        layers = {name: self.linear[name] for name in names}
        found = inputs_of_layers(layers, lambda: self.run(images, parameters, with_grad=with_grad))
        return {name: given.flatten(1) for name, given in found.items()}

    def features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), in the model's precision."""
        return self.inputs_of([self.head_name], images)[self.head_name]

    def double_features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), computed in float64."""
        found = self.inputs_of([self.head_name], images.double(), parameters=self.double)
        return found[self.head_name]

    @cached_property
    def probed_features(self) -> Tensor:
        """The last layer's input on random images, (8, D)."""
        return self.probed(self.head_name)

    def probed(self, name: str) -> Tensor:
        """Return the input (8, n) of a linear layer, by its name, on random images."""
        return self.inputs_of([name], self._noise(PROBES))[name]

    def has_nonnegative_features(self) -> bool:
        """Say whether the last layer's inputs are never negative, as after ReLU or sigmoid.

        Found by probing: eight random images have no negative feature among their 8·D.
        """
        return bool((self.probed_features >= 0).all())

    @cached_property
    def double(self) -> dict[str, Tensor]:
        """The parameters and buffers in float64, by name."""
        return self._double()

    def _double(self, *, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Return them without those of some layers, since they won't run."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        left = tuple(f"{name}." for name in but)
        return {
            name: tensor.detach().double()
            for name, tensor in named
            if tensor.is_floating_point() and not (left and name.startswith(left))
        }

    def _noise(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        draws = torch.Generator().manual_seed(0)
        return torch.rand(count, *self.input_shape, generator=draws, dtype=dtype)

    def _require_head_alone(self) -> None:
        """Raise unless the last layer's gradient is that of the last layer alone."""
        if self.runs[self.head_name] > 1:
            raise NotApplicable(
                f"the last layer, {self.head_name!r}, runs {self.runs[self.head_name]} times, so "
                "its gradient is a sum over these"
            )
        weight = parameter_name(self.head_name, "weight")
        named = self.module.named_parameters(remove_duplicate=False)
        own = getattr(self.head, "weight", None)
        others = [name for name, p in named if p is own and name != weight]
        if others:
            raise NotApplicable(
                f"the last layer's weight, {weight!r}, is tied to {others[0]!r}: its gradient is "
                "the sum of both layers'"
            )


def parameter_name(layer: str, part: str) -> str:
    """Return a parameter's name in the model: a model that is one layer has no name itself."""
    return f"{layer}.{part}".lstrip(".")


def sharing_copy(model: nn.Module) -> nn.Module:
    """Copy the modules but share the tensors; the copy's hooks and mode are its own."""
    copies: dict[nn.Module, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if module not in copies:
            one = copies[module] = shallow(module)
            for name, child in module.named_children():
                one._modules[name] = copied(child)
        return copies[module]

    return copied(model).eval()
