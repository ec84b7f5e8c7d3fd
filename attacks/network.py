"""What an attack reads off a network: its last linear layer and that layer's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.types import GradientLeak, NotApplicable


class Network:
    """A view of a leak's model in eval mode that shares its tensors and leaves it as it was.

    Args:
        leak: its model maps (N, C, H, W) pixels to (N, K) logits, by a linear layer at the end.

    Raises:
        NotApplicable: the output isn't that of one `nn.Linear`.
    """

    def __init__(self, leak: GradientLeak) -> None:
        self.input_shape = leak.input_shape
        self.module = _sharing_copy(leak.model)
        parameter = next(self.module.parameters())
        self._blank = torch.zeros(1, *leak.input_shape, dtype=parameter.dtype)
        outputs: dict[str, Any] = {}

        def remember(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                outputs[name] = output

            return hook

        self.linear = {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}
        handles = [m.register_forward_hook(remember(n)) for n, m in self.linear.items()]
        try:
            with torch.no_grad():
                logits = self.module(self._blank)
        except (RuntimeError, ValueError, TypeError) as error:
            line = str(error).partition("\n")[0]
            raise NotApplicable(
                f"the model doesn't take an image of input_shape {leak.input_shape}: {line}"
            ) from error
        for handle in handles:
            handle.remove()
        self.executed = list(outputs)
        heads = [name for name, output in outputs.items() if output is logits]
        if not heads:
            raise NotApplicable(_without_head(logits, outputs))
        self.head_name = heads[0]
        self.head = self.linear[self.head_name]

    def head_gradients(self, leak: GradientLeak) -> tuple[str, ...]:
        """Return the names of the last layer's gradients, of its weight and of a bias.

        Raises:
            NotApplicable: the leak lacks one that the layer has.
        """
        # By these names: a reparametrised weight has other parameters, whose gradients aren't its.
        own = [name for name in ("weight", "bias") if getattr(self.head, name) is not None]
        names = tuple(f"{self.head_name}.{name}".lstrip(".") for name in own)
        for name in names:
            if name not in leak.gradients:
                raise NotApplicable(f"the gradient of the last layer, {name!r}, is missing")
        return names

    def inputs_of(
        self, name: str, images: Tensor, *, parameters: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return the input of a linear layer on a batch of images.

        Args:
            name: the layer's module name.
            images: (N, C, H, W) pixels.
            parameters: other values for the parameters and buffers, for another precision.

        Returns:
            (N, width of the layer's input).
        """
        caught: list[Tensor] = []

        def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught.append(inputs[0])

        handle = self.linear[name].register_forward_pre_hook(catch)
        with torch.no_grad():
            functional_call(self.module, dict(parameters or {}), (images,))
        handle.remove()
        return caught[0].flatten(1)

    def features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), in the model's precision."""
        return self.inputs_of(self.head_name, images.to(self._blank))

    def double_features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), computed in float64."""
        return self.inputs_of(self.head_name, images.double(), parameters=self._double())

    def double_input(self, name: str, images: Tensor) -> Tensor:
        """Return a linear layer's input on images (N, C, H, W), computed in float64."""
        return self.inputs_of(name, images.double(), parameters=self._double())

    def has_nonnegative_features(self) -> bool:
        """Say whether the last layer's inputs are never negative, as after ReLU or sigmoid.

        Found by probing: eight random images have no negative feature among their 8·D.
        """
        generator = torch.Generator().manual_seed(0)
        probes = torch.rand(8, *self.input_shape, generator=generator)
        return bool((self.features(probes) >= 0).all())

    def _double(self) -> dict[str, Tensor]:
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {
            name: tensor.detach().double() for name, tensor in named if tensor.is_floating_point()
        }


def _without_head(output: Any, outputs: Mapping[str, Any]) -> str:
    """Say why a model's output isn't that of one linear layer."""
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, list | tuple):
        heads = [name for name, one in outputs.items() if any(one is part for part in parts)]
        names = ", ".join(map(repr, heads)) or "none"
        return (
            f"the model has several outputs, of which {names} are linear layers'; wrap it in a "
            "module that returns one of them"
        )
    return "the model's output must be that of a linear layer, its logits"


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Copy the modules but share the tensors; the copy's hooks and mode are its own."""
    copies: dict[nn.Module, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if module not in copies:
            # Not copy.copy, which reparametrised modules refuse.
            one = copies[module] = object.__new__(type(module))
            for name, value in vars(module).items():  # dicts: parameters, buffers, hooks
                vars(one)[name] = value.copy() if isinstance(value, dict) else value
            for name, child in module.named_children():
                one._modules[name] = copied(child)
        return copies[module]

    return copied(model).eval()
