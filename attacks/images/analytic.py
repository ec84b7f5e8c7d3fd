"""The exact images behind the gradient of a fully connected network.

Y. Wang, J. Liang, R. He, *Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks*, ICLR 2024, arXiv 2402.03124, section 5, invert such networks layer by layer from one
example's recovered label. With the last layer's input x and `δ_L = p − y`, and down from there,

    δ_{l−1} = (W_lᵀ δ_l) ⊙ σ'(a_{l−1}),      a_{l−2} = (∂L/∂W_{l−1})ᵀ δ_{l−1} / ‖δ_{l−1}‖².

Three ways lead to the first layer's input: for one example the shortcut of
`attacks.dense.shortcut`; the chain above; and its extension to batches, `attacks.dense.chain`
(one example is a batch of one), which needs every example's feature and nothing else of its label.

A batch's images fix the labels' scales again, `attacks.dense.refit`: those of a weight update are a
thousandfold more exact than what the last layer alone gives, and so are the images.

Several steps that `attacks.unrolled` repeats have their own test, and ask no label attack; nor do
several rounds that `attacks.rounds` takes together; of rounds of which a defense is told to perturb
some alone, one that it didn't is taken by itself.

Behind a variational bottleneck the layers before it show the images: `attacks.variational`.

An image that went through `attacks.dense.image_check` is claimed, whatever label attack came
before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.answers import ExampleImage, LabelRecovery, Reconstruction, Status, known
from attacks.batch.second_example import second_example
from attacks.dense.descent import by_chain, by_shortcut, statuses_of, through_dropout
from attacks.dense.dropout import is_behind_relus
from attacks.dense.image_check import check_images
from attacks.dense.shortcut import is_homogeneous
from attacks.facts import LOSSES, Bottleneck, Decaying, Fact, NoiseMechanism, Quantized
from attacks.lost.completed import completed
from attacks.numerics.rms import row_rms
from attacks.rounds.answer import images_of_rounds
from attacks.rounds.known_noise import with_noise_known
from attacks.rounds.unperturbed import without_perturbed
from attacks.types import GradientLeak, ImageAttack, NotApplicable
from attacks.unrolled.answer import images_of_steps
from attacks.unrolled.one_image import require_no_convolution
from attacks.variational.answer import has_bottleneck, images_behind_bottleneck
from attacks.victim.network import Network
from attacks.victim.pixel_map import STRAYS, PixelMap, range_of
from attacks.victim.require import require_known_layers, require_values
from attacks.ways import best_of

Route = Literal["auto", "shortcut", "chain"]
HOPELESS = 0.5
"""Feature residual, or error relative to the input, from which there is no image to show."""
SAFETY = 4.0
"""Standard deviations of the scale, and how much more an image may be off than its feature."""
NOISE_MARGIN = 1.5
"""How much more noise may do than its share in the first layer's gradient."""
WRONG = (
    "what was found isn't the image: forward through the network it doesn't lead to the layers' "
    "gradients, as where examples are mixed or entries mapped (Adam, sign compression)"
)
OPEN_PIXELS = (
    "what was sent of the gradient leaves some of its pixels open; they are shown as black"
)


@dataclass(frozen=True)
class AnalyticInversion(ImageAttack):
    """Invert a fully connected network, with or without biases, for one example or a batch.

    The loss may be any function of the logits; the scale that a label gives is a cross-entropy's.

    ReLU and leaky ReLU networks of any depth; sigmoid, tanh, softplus and ELU where the label
    recovery gives features of such. One example with a bias in the first layer: any network above.
    Dropout in train mode is no obstacle behind ReLUs.

    Args:
        tolerance: root mean square error in pixels, relative to their range, that RECOVERED stays
            below, above 0; the default is a PSNR of 50 dB. The error is estimated by the test of
            `attacks.dense.image_check` and from the noise.
        route: for one example: "shortcut", the "chain", or "auto", the shortcut where it applies.

    Raises:
        ValueError: tolerance isn't above 0, or the route is none of these.

    Note:
        A mixed-up example yields the mixed image, which is what the client trained on; the label
        recovery's `augmentations` say whether it is one.
    """

    reach: ClassVar[str] = (
        "one local step of a fully connected network, of one example or of a batch, and several "
        "steps or epochs"
    )
    combines_rounds: ClassVar[bool] = True
    uses: ClassVar[tuple[type[Fact], ...]] = (
        *LOSSES,
        *(NoiseMechanism, Quantized, Decaying, Bottleneck),
    )
    tolerance: float = 10 ** (-50 / 20)
    route: Route = "auto"

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be above 0, found {self.tolerance}")
        if self.route not in ("auto", "shortcut", "chain"):
            raise ValueError(f"route must be auto, shortcut or chain, found {self.route!r}")

    def reconstruct(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        """Recover the first layer's inputs and undo what stands before it."""
        require_values(leak)
        leak = without_perturbed(leak)

        def by_likelihood() -> Reconstruction:
            return images_of_rounds(leak, Network.of(leak), labels, tolerance=self.tolerance)

        if leak.earlier is not None:
            return by_likelihood()
        return with_noise_known(
            leak, lambda: self._of_one_round(leak, labels, generator), by_likelihood
        )

    def _of_one_round(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        if not has_bottleneck(leak):
            return self._of_layers(leak, labels, generator)
        return best_of(
            lambda: images_behind_bottleneck(leak, tolerance=self.tolerance),
            lambda: self._of_layers(leak, labels, generator),
        )

    def _of_layers(
        self, leak: GradientLeak, labels: LabelRecovery, generator: torch.Generator
    ) -> Reconstruction:
        completion = completed(leak, generator)
        leak = completion.leak
        network = Network.of(leak)
        drops = is_behind_relus(leak, network)
        if not drops:
            require_known_layers(leak)
        if leak.local_steps > 1:
            require_no_convolution(network)
            return images_of_steps(leak, network, labels, tolerance=self.tolerance)
        first = network.executed[0]
        inverse = PixelMap.of(network, first)
        batch = leak.batch_size or labels.batch_size or 1
        if batch > 1 and self.route == "shortcut":
            raise NotApplicable(f"the shortcut is for one example, found {batch}")
        if batch == 1 and not drops and self._takes_shortcut(network, first, inverse):
            found = by_shortcut(leak, network, first, inverse, labels)
        else:
            found = by_chain(leak, network, batch, labels, generator)
        if network.linear[first].bias is None:
            found = found.within_range(labels.examples, inverse, SAFETY)
        statuses = statuses_of(labels, batch)
        dropped = through_dropout(leak, network, found, labels, generator) if drops else None
        lost_errors = completion.errors_of(found.a)
        test = check_images(leak, network, inverse, found.a, found.features, statuses, dropped)
        size = row_rms(found.a) * inverse.worth
        factor = 1.0 if batch == 1 else SAFETY
        errors = torch.stack(
            [
                NOISE_MARGIN * found.noise * inverse.worth,
                found.scale_bar * size,
                factor * test.error * size,
                lost_errors * size,
            ]
        ).amax(dim=0)
        images = inverse.pixels(found.a)
        overshoot = row_rms(images - images.clamp(0, 1))
        low, high = 0.0, 1.0
        if leak.normalization is None:
            low, high = _range_of(images, errors, overshoot, self.tolerance)
        errors = errors / (high - low)
        if (low, high) == (0.0, 1.0):
            errors = torch.maximum(errors, overshoot)
        strays = overshoot > self.tolerance * (high - low)
        wrong = (test.residual > HOPELESS) | ~found.a.isfinite().all(dim=1)
        lost = wrong | ((errors > HOPELESS * size / (high - low)) & (errors < torch.inf) & ~strays)
        untold = tuple(
            OPEN_PIXELS if is_open else reason
            for is_open, reason in zip(lost_errors.isinf().tolist(), test.reasons, strict=True)
        )
        if batch == 1:
            untold = (second_example(leak, network) or untold[0],)
        verdicts = [
            self._verdict(*one)
            for one in zip(
                found.reasons,
                wrong.tolist(),
                untold,
                (strays & ((low, high) == (0.0, 1.0))).tolist(),
                errors.tolist(),
                strict=True,
            )
        ]
        examples = [
            ExampleImage(
                status,
                reason,
                None if is_lost else image.clamp(low, high),
                known(residual),
                error,
            )
            for (status, reason, error), is_lost, image, residual in zip(
                verdicts, lost.tolist(), images, test.residual.tolist(), strict=True
            )
        ]
        return Reconstruction.of(examples, pixel_range=(low, high))

    def _takes_shortcut(self, network: Network, first: str, inverse: PixelMap) -> bool:
        if self.route == "chain":
            return False
        applies = network.linear[first].bias is not None or is_homogeneous(network, inverse)
        if self.route == "shortcut" and not applies:
            raise NotApplicable(
                "without a bias in the first layer, the shortcut needs a homogeneous network: "
                "linear layers without biases and ReLU-like activations"
            )
        return applies

    def _verdict(
        self,
        unidentifiable: str | None,
        wrong: bool,
        untold: str | None,
        strays: bool,
        error: float,
    ) -> tuple[Status, str | None, float | None]:
        """Return status, reason and the error, as far as it can be estimated."""
        if unidentifiable is not None:
            return Status.NOT_IDENTIFIABLE, unidentifiable, None
        if wrong:
            return Status.NOT_CONVERGED, WRONG, None
        if untold is not None:
            return Status.NOT_IDENTIFIABLE, untold, None
        if strays:
            return Status.NOT_CONVERGED, STRAYS, None
        if not error <= self.tolerance:
            estimate = f"estimated at {error:.2g}, more than {self.tolerance:.2g}"
            return Status.NOT_CONVERGED, f"the image's error is {estimate}", known(error)
        return Status.RECOVERED, None, error


def _range_of(
    images: Tensor, errors: Tensor, overshoot: Tensor, tolerance: float
) -> tuple[float, float]:
    """Return the range of the images that are right in all but theirs; [0, 1] if that is theirs."""
    pixels = images.flatten(1)
    spans = (pixels.amax(dim=1) - pixels.amin(dim=1)).clamp(min=1)
    fits = (errors <= tolerance * spans) & pixels.isfinite().all(dim=1)
    if not (overshoot[fits] > tolerance).any():
        return 0.0, 1.0
    return range_of(pixels[fits])
