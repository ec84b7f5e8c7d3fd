"""An image to start from, of several steps on one example, by the closed forms for one step.

The mean of the steps' gradients is nearly that of one step at the mean of the weights. Its last
layer's is nearly of rank one, `δ xᵀ`; a bias gives the scale of x, and without one several are
tried. From there the closed forms go down the convolutions, as far from exact as the last layer's
gradient is from rank one; of what they give, the training says which comes nearest.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from attacks.convolution.evidence import Evidence
from attacks.convolution.image_fit import fit_image
from attacks.convolution.rank import NotIdentifiable
from attacks.convolution.recursion import Front, descend
from attacks.convolution.stages import Chain, read_chain
from attacks.types import GradientLeak, NotApplicable
from attacks.unrolled.one_image import ImageEquations
from attacks.unrolled.simulation import Unknowns
from attacks.unrolled.start import WIDEST_SCALE
from attacks.victim.network import Network, parameter_name

INVERTED, FITTED = 12, 5
"""Scales tried by recursion, and by a fit."""
FIT_STEPS = 20
"""Of Levenberg-Marquardt, for a start."""
LEAST_DRIFT, MOST_DRIFT = 1e-5, 0.1
"""Relative error of the mean gradient that the closed forms are told."""
IMAGES_KEPT = 3
"""To be refined."""


def rough_images(leak: GradientLeak, equations: ImageEquations) -> list[Unknowns]:
    """Return what to start from, the likeliest first.

    Raises:
        NotApplicable: the network isn't a chain of convolutions with activations that are known, or
            no closed form comes to an end.
    """
    middle = midway(leak)
    chain = read_chain(middle)
    shares = torch.ones(leak.local_steps, 1, dtype=torch.float64)
    found = []
    for image, label in _candidates(middle, chain):
        for pixels in (image, image.clamp(0, 1)):
            client = Unknowns(pixels[None], label[None], shares)
            away = float(equations.residuals(equations.model_at(client).start).abs().median())
            if away < torch.inf:
                found.append((away, client))
    if not found:
        raise NotApplicable("the mean of the steps' gradients leads to no image")
    found.sort(key=lambda one: one[0])
    return [client for _, client in found[:IMAGES_KEPT]]


def midway(leak: GradientLeak) -> GradientLeak:
    """Return the mean gradient, as one of one step at the mean of the weights before each step."""
    optimizer, steps = leak.optimizer, leak.local_steps
    assert optimizer is not None
    assert leak.lr is not None
    reach = optimizer.linear_map(steps)[1]
    stays, moved = optimizer.mean_map(steps)
    mean = {name: leak.lr / reach * part.double() for name, part in leak.gradients.items()}
    model = copy.deepcopy(leak.model).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(stays)
            if name in mean:
                weight.sub_(moved * mean[name])
    return GradientLeak(model, mean, 1, leak.input_shape, normalization=leak.normalization)


def _candidates(middle: GradientLeak, chain: Chain) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (C·H·W,) and labels (K,)."""
    generator = torch.Generator().manual_seed(0)
    head = chain.head
    weight, bias = (parameter_name(head.name, part) for part in ("weight", "bias"))
    gradient = middle.gradients[weight].double()
    _, values, right = torch.linalg.svd(gradient, full_matrices=False)
    drift = min(max(float(values[1] / values[0]), LEAST_DRIFT), MOST_DRIFT)
    stages = [stage for stage in chain.body if not stage.is_linear]
    is_smooth = all(stage.activation.is_invertible for stage in stages)
    if bias in middle.gradients and middle.gradients[bias].any():
        g = middle.gradients[bias].double()
        features = [gradient.T @ g / (g @ g)]
    else:
        network = Network.of(middle)
        usual = float(network.probed_features.double().norm(dim=1).mean())
        scales = usual * np.geomspace(
            1 / WIDEST_SCALE, WIDEST_SCALE, INVERTED if is_smooth else FITTED
        )
        sign = 1.0 if float(right[0].sum()) >= 0 else -1.0
        signs = (sign,) if network.has_nonnegative_features() else (sign, -sign)
        features = [one * float(scale) * right[0] for one in signs for scale in scales]
    for x in features:
        delta = gradient @ x / (x @ x)
        logits = head.preactivation(x).flatten()
        label = (logits.softmax(dim=0) - delta).clamp(0, 1)
        evidence = Evidence(middle, x, torch.zeros_like(x), delta, 0.0, 0.0, drift)
        image = _image(chain, evidence, is_smooth, generator)
        if image is not None and image.isfinite().all() and label.sum() > 0:
            yield image, label / label.sum()


def _image(
    chain: Chain, evidence: Evidence, is_smooth: bool, generator: torch.Generator
) -> Tensor | None:
    """Return the image (C·H·W,) that a feature leads to, if any."""
    stages, front = list(chain.body), Front.at_head(evidence, chain)
    try:
        while stages and stages[-1].is_linear:
            front = descend(front, [stages.pop()], evidence, generator)
        if is_smooth:
            front = descend(front, stages, evidence, generator, counts=False)
            return chain.pixels.pixels(front.value).flatten()
        fitted = fit_image(
            chain, stages, front, evidence, generator, iterations=FIT_STEPS, starts=1
        )
        return fitted[0].image
    except (NotApplicable, NotIdentifiable):
        return None
