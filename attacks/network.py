"""What an attack reads off a network: its last linear layer and that layer's input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.intake import shallow
from attacks.types import GradientLeak, NotApplicable

PROBES = 2
"""Random images on which a network is read: two, to tell examples from classes and places."""
ROUNDINGS = 8
"""Roundings by which two computations of one thing may differ."""


class Network:
    """A view of a leak's model in eval mode that shares its tensors and leaves it as it was.

    Args:
        leak: its model maps (N, C, H, W) images to (N, K) logits, by a linear layer at the end, or
            to their log-softmax, of which the cross-entropy is the same.

    Attributes:
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
        self.module = _sharing_copy(leak.model)
        self.dtype = next(self.module.parameters()).dtype
        self._normalization = leak.normalization
        self.linear = {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}
        self.runs: Counter[str] = Counter()
        outputs: dict[str, Any] = {}

        self.flat: set[str] = set()

        def remember(name: str, output: Tensor) -> None:
            self.runs[name] += 1
            outputs[name] = output
            if output.ndim == 2 and len(output) == PROBES:
                self.flat.add(name)

        draws = torch.Generator().manual_seed(0)
        images = torch.rand(PROBES, *leak.input_shape, generator=draws)
        with _watched(self.linear, remember):
            try:
                logits = self.run(images)
            except Exception as error:  # a user's model may raise anything
                line = str(error).partition("\n")[0]
                raise NotApplicable(
                    f"the model doesn't take an image of input_shape {leak.input_shape}: {line}"
                ) from error
        self.executed = list(outputs)
        self.head_name = _find_head(logits, outputs)
        self.head = self.linear[self.head_name]
        self._require_head_alone()

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
        given = self.inputs(images)
        given = given.to(self.dtype) if tensors is None else given
        with torch.set_grad_enabled(with_grad):
            return functional_call(self.module, dict(tensors or {}), (given,))

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the client's loader makes of pixels (N, C, H, W)."""
        return images if self._normalization is None else self._normalization(images)

    def head_gradients(self, leak: GradientLeak) -> tuple[str, ...]:
        """Return the names of the last layer's gradients, of its weight and of a bias.

        Raises:
            NotApplicable: the leak lacks one that the layer has.
        """
        # By these names: a reparametrised weight has other parameters, whose gradients aren't its.
        own = [part for part in ("weight", "bias") if getattr(self.head, part) is not None]
        return tuple(self._head_name_of(part, leak) for part in own)

    def head_gradient(self, leak: GradientLeak) -> Tensor:
        """Return the gradient (K, D) of the last layer's weight, in float64.

        Raises:
            NotApplicable: the leak lacks it.
        """
        return leak.gradients[self._head_name_of("weight", leak)].detach().double()

    def inputs_of(
        self,
        name: str,
        images: Tensor,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        with_grad: bool = False,
    ) -> Tensor:
        """Return the input of a linear layer on a batch of images.

        Args:
            name: the layer's module name.
            images: (N, C, H, W) pixels.
            parameters: other values for the parameters and buffers, for another precision.
            with_grad: whether it is to be differentiated by the images.

        Returns:
            (N, width of the layer's input).
        """
        found = self.inputs_of_all([name], images, parameters=parameters, with_grad=with_grad)
        return found[name]

    def inputs_of_all(
        self,
        names: list[str],
        images: Tensor,
        *,
        parameters: Mapping[str, Tensor] | None = None,
        with_grad: bool = False,
    ) -> dict[str, Tensor]:
        """Return the inputs of several linear layers, each (N, width) where it is flat."""
        caught: dict[str, Tensor] = {}
        handles = [
            self.linear[name].register_forward_pre_hook(_catch(caught, name), with_kwargs=True)
            for name in names
        ]
        self.run(images, parameters, with_grad=with_grad)
        for handle in handles:
            handle.remove()
        return {name: given.flatten(1) for name, given in caught.items()}

    def features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), in the model's precision."""
        return self.inputs_of(self.head_name, images)

    def double_features(self, images: Tensor) -> Tensor:
        """Return the last layer's input (N, D) on images (N, C, H, W), computed in float64."""
        return self.double_input(self.head_name, images)

    def double_input(self, name: str, images: Tensor) -> Tensor:
        """Return a linear layer's input on images (N, C, H, W), computed in float64."""
        return self.inputs_of(name, images.double(), parameters=self.double())

    def has_nonnegative_features(self) -> bool:
        """Say whether the last layer's inputs are never negative, as after ReLU or sigmoid.

        Found by probing: eight random images have no negative feature among their 8·D.
        """
        generator = torch.Generator().manual_seed(0)
        probes = torch.rand(8, *self.input_shape, generator=generator)
        return bool((self.features(probes) >= 0).all())

    def double(self, *, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Return the parameters and buffers in float64, by name.

        Args:
            but: linear layers whose tensors are left out, since they won't run.
        """
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        left = tuple(f"{name}." for name in but)
        return {
            name: tensor.detach().double()
            for name, tensor in named
            if tensor.is_floating_point() and not (left and name.startswith(left))
        }

    def _head_name_of(self, part: str, leak: GradientLeak) -> str:
        name = parameter_name(self.head_name, part)
        if name not in leak.gradients:
            raise NotApplicable(f"the gradient of the last layer, {name!r}, is missing")
        return name

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


@contextmanager
def _watched(
    layers: Mapping[str, nn.Module], remember: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call `remember` with the name and the output of each layer that runs."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            remember(name, output)

        return hook

    handles = [m.register_forward_hook(hook_of(n)) for n, m in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_of(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """Return what a layer was called on, by position or by keyword, as a hook gets it."""
    given: Tensor = inputs[0] if inputs else named["input"]
    return given


def _catch(caught: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught[name] = input_of(inputs, named)

    return hook


def _find_head(logits: Any, outputs: Mapping[str, Tensor]) -> str:
    """Return the linear layer whose output the model's is.

    Raises:
        NotApplicable: there is none; the sentence says what the output is instead.
    """
    if not isinstance(logits, Tensor):
        raise NotApplicable(_several_outputs(logits, outputs))
    if logits.ndim != 2 or len(logits) != PROBES:
        raise NotApplicable(
            f"the model's output for {PROBES} images has the shape {tuple(logits.shape)}, and must "
            "be one row of logits for each image: no other places, tokens or pixels"
        )
    if logits.shape[1] < 2:
        raise NotApplicable(
            "the model has one output: cross-entropy over classes needs two or more, and of other "
            "losses these gradients mean something else"
        )
    like = {name: z for name, z in outputs.items() if z.numel() == logits.numel()}
    for name, z in reversed(like.items()):
        rows = z.reshape(logits.shape)
        if z is logits or torch.equal(rows, logits) or _same(rows.log_softmax(1), logits):
            return name
    for name, z in reversed(like.items()):
        rows = z.reshape(logits.shape)
        if _same(rows.softmax(1), logits):
            raise NotApplicable(
                f"after the last linear layer, {name!r}, the model takes a softmax: the "
                "cross-entropy of its output isn't that of logits; if the loss takes its "
                "logarithm, give the model without that layer"
            )
        if _same(rows.sigmoid(), logits):
            raise NotApplicable(
                f"after the last linear layer, {name!r}, the model takes a sigmoid, as for a "
                "binary cross-entropy; attacks here read a softmax's"
            )
    raise NotApplicable(
        "the model's output must be that of a linear layer, its logits, or their log-softmax"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    limit = ROUNDINGS * torch.finfo(b.dtype).eps * b.abs().max()
    return bool((a - b).abs().max() <= limit) and bool(b.isfinite().all())


def _several_outputs(output: Any, outputs: Mapping[str, Any]) -> str:
    """Say why a model's output isn't one tensor."""
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(parts, list | tuple):
        heads = [name for name, one in outputs.items() if any(one is part for part in parts)]
        names = ", ".join(map(repr, heads)) or "none"
        return (
            f"the model has several outputs, of which {names} are linear layers'; wrap it in a "
            "module that returns one of them"
        )
    return f"the model's output must be a tensor of logits, found {type(output).__name__}"


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Copy the modules but share the tensors; the copy's hooks and mode are its own."""
    copies: dict[nn.Module, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if module not in copies:
            one = copies[module] = shallow(module)
            for name, child in module.named_children():
                one._modules[name] = copied(child)
        return copies[module]

    return copied(model).eval()
