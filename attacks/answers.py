"""What an attack answers: one small record for each example, and what the examples share.

Every part checks its own form where it is made, and refuses what is wrong by name. Axis letters
are those of `attacks.types`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor


class Status(StrEnum):
    """How an attack ended. Anything but RECOVERED comes with a one-sentence reason."""

    RECOVERED = "RECOVERED"
    NOT_CONVERGED = "NOT_CONVERGED"
    NOT_IDENTIFIABLE = "NOT_IDENTIFIABLE"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    FAILED = "FAILED"


class Certainty(StrEnum):
    """How sure an answer on one example is, as the attacker knows, from the surest down."""

    VOUCHED = "vouched"
    """It passed a test that a wrong answer fails: its status is RECOVERED."""
    LIKELY = "likely"
    """It is the best estimate, and comes with an error bar."""
    GUESS = "guess"
    """Nothing says how far off it is."""


@dataclass(frozen=True)
class Augmentation:
    """What was done to a label.

    Args:
        type: "hard", "label-smoothing", "mixup" or "mixup+label-smoothing".
        smoothing: ε of `y = (1−ε)·y₀ + ε/K`; 0 without smoothing.
        mixing: the larger share of a mixed pair, in [0.5, 1]; None for one class.
    """

    type: str
    smoothing: float = 0.0
    mixing: float | None = None


@dataclass(frozen=True, eq=False)
class Verdict:
    """How an attack ended, on one example or on all.

    Args:
        status: how.
        reason: one sentence, unless RECOVERED.

    Raises:
        TypeError: the status is another type.
        ValueError: status and reason don't fit.
    """

    status: Status
    reason: str | None = None

    def __post_init__(self) -> None:
        status, reason = self.status, self.reason
        if not isinstance(status, Status):
            raise TypeError(f"status must be a Status, found {status!r}")
        if status is Status.RECOVERED:
            if reason is not None:
                raise ValueError(f"reason must be None under RECOVERED, found {reason!r}")
        elif not isinstance(reason, str) or not reason.strip() or "\n" in reason:
            raise ValueError(f"reason must be one sentence under {status}, found {reason!r}")


@dataclass(frozen=True, eq=False)
class ExampleLabel(Verdict):
    """What a label attack answers on one example.

    Args:
        status: RECOVERED claims an L∞ error of the label below the attack's tolerance.
        reason: one sentence, unless RECOVERED.
        label: (K,) float64; None where there is none.
        feature: (D,) float64, the last layer's input; likewise. A unit vector where its scale is
            open, as the reason then says.
        augmentation: as detected; None where it isn't.
        label_std: (K,) float64, standard errors of the label's entries if the augmentation is
            right, NaN where unknown; None from attacks that don't know them.
        label_bar: L∞ error bar of the label, whatever else may be unknown; None where nothing
            tells.
        feature_bar: relative error bar of the feature's scale; None where unknown.
        residual: at least 0, the smaller the better; 0 is a perfect fit, 1 what noise and rounding
            explain; None where there is none.
        certificate: at least 0, higher is safer; the attack states its threshold. None without a
            runner-up.
        candidates: (N, K) float64, the labels that fit equally well under NOT_IDENTIFIABLE, the
            likeliest first; None from attacks that don't look for others.

    Raises:
        TypeError: a part is of another type.
        ValueError: a part has another shape or precision, isn't finite, or status and reason don't
            fit.
    """

    label: Tensor | None = None
    feature: Tensor | None = None
    augmentation: Augmentation | None = None
    label_std: Tensor | None = None
    label_bar: float | None = None
    feature_bar: float | None = None
    residual: float | None = None
    certificate: float | None = None
    candidates: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_tensor("label", self.label, "K")
        _require_tensor("feature", self.feature, "D")
        _require_tensor("label_std", self.label_std, "K", may_be_nan=True)
        _require_tensor("candidates", self.candidates, "NK")
        for name in ("label_bar", "feature_bar", "residual", "certificate"):
            _require_measure(name, getattr(self, name))
        if self.augmentation is not None:
            require_type("augmentation", self.augmentation, Augmentation)
        if self.status is Status.RECOVERED and self.label is None:
            raise ValueError("RECOVERED must come with a label, found None")
        sizes = {
            name: tuple(part.shape[-1:])
            for name in ("label", "label_std", "candidates")
            if (part := getattr(self, name)) is not None
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(f"an example's parts must have the same K, found {sizes}")

    @property
    def certainty(self) -> Certainty | None:
        """How sure the label is; None without one."""
        return _certainty(self.status, self.label, self.label_bar)


@dataclass(frozen=True, eq=False)
class BatchVerdict(Verdict):
    """How an attack ended on all examples, which it answers one by one.

    Args:
        status: RECOVERED if every example is.
        reason: one sentence, unless RECOVERED.
        examples: one for each of the batch; none where the attack gave up before, or counts.

    Raises:
        TypeError: a part is of another type.
        ValueError: status and examples don't fit.
    """

    examples: tuple[Any, ...] = ()

    _example_type: ClassVar[type]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_examples(self.status, self.examples, self._example_type)

    @property
    def statuses(self) -> tuple[Status, ...]:
        """One for each example."""
        return tuple(example.status for example in self.examples)


@dataclass(frozen=True, eq=False)
class LabelRecovery(BatchVerdict):
    """What a label attack answers; the examples of a batch come in no particular order.

    Args:
        status: RECOVERED if every example is.
        reason: one sentence, unless RECOVERED.
        examples: one for each of the batch; none where the attack gave up before, or counts.
        gradient_scale: the factor on the gradient (clipping, a wrong learning rate) that the labels
            imply; None from attacks that take it as 1.
        mass: (K,), at least 0, the label mass Σ_b y_b of all examples behind the leak, from attacks
            that count; it sums to B · local steps, and to 1 where B is unknown.
        batch_size: B, estimated where the leak doesn't give it; the number of examples where there
            are any.

    Raises:
        TypeError: a part is of another type.
        ValueError: a part doesn't fit the others, or is no such part.
    """

    examples: tuple[ExampleLabel, ...] = ()
    gradient_scale: float | None = None
    mass: Tensor | None = None
    batch_size: int | None = None

    _example_type: ClassVar[type] = ExampleLabel

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_alike("labels", [example.label for example in self.examples])
        _require_alike("features", [example.feature for example in self.examples])
        scale, size = self.gradient_scale, self.batch_size
        if scale is not None and not (isinstance(scale, float) and 0 < scale < math.inf):
            raise ValueError(f"gradient_scale must be finite and above 0, or None, found {scale!r}")
        if size is None and self.examples:
            object.__setattr__(self, "batch_size", len(self.examples))
        elif size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"batch_size must be at least 1, or None, found {size!r}")
        elif self.examples and size != len(self.examples):
            raise ValueError(
                f"batch_size must be the number of examples, {len(self.examples)}, found {size}"
            )
        if self.mass is not None:
            require_type("mass", self.mass, Tensor)
            if self.mass.ndim != 1:
                raise ValueError(f"mass must have the shape (K,), found {tuple(self.mass.shape)}")
            if not (self.mass.isfinite().all() and self.mass.min() >= 0 and self.mass.sum() > 0):
                raise ValueError(
                    f"mass must be finite, at least 0 and not all 0, found {self.mass}"
                )

    @classmethod
    def of(
        cls, examples: Sequence[ExampleLabel], *, gradient_scale: float | None = None
    ) -> LabelRecovery:
        """Put a batch's answer together: its status is that of most of the failures."""
        status, reason = _overall(examples, "examples")
        return cls(status, reason, tuple(examples), gradient_scale)

    @functools.cached_property
    def labels(self) -> Tensor | None:
        """(B, K), rows of NaN where there is none; None without any."""
        return _stack([example.label for example in self.examples])

    @functools.cached_property
    def features(self) -> Tensor | None:
        """(B, D), likewise."""
        return _stack([example.feature for example in self.examples])

    def require_fit(self, *, batch_size: int | None, classes: int | None) -> None:
        """Check an answer against what was attacked.

        Args:
            batch_size: B; None where the attacker doesn't know it.
            classes: K; None where it isn't known.

        Raises:
            ValueError: it holds another number of examples or of classes.
        """
        _require_number(self.examples, batch_size)
        for name, part in {"labels": self.labels, "mass": self.mass}.items():
            if part is not None and classes not in (None, part.shape[-1]):
                raise ValueError(f"{name} must have {classes} classes, found {part.shape[-1]}")


@dataclass(frozen=True, eq=False)
class ExampleImage(Verdict):
    """What an image attack answers on one example.

    Args:
        status: RECOVERED claims a PSNR of at least 50 dB.
        reason: one sentence, unless RECOVERED.
        image: (C, H, W) float64; None where there is none.
        residual: at least 0, the attack's own measure of its misfit, the smaller the better; None
            where there is none.
        error: root mean square error in pixels, relative to their range, as the attack estimates
            it; None where it can't.
        spread: (C, H, W) float64, standard deviation of each pixel over the starts of a search,
            which is small where they agree; None without several starts.

    Raises:
        TypeError: a part is of another type.
        ValueError: a part has another shape or precision, isn't finite, or status and reason don't
            fit.
    """

    image: Tensor | None = None
    residual: float | None = None
    error: float | None = None
    spread: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_tensor("image", self.image, "CHW")
        _require_tensor("spread", self.spread, "CHW")
        _require_measure("residual", self.residual)
        _require_measure("error", self.error)
        if self.status is Status.RECOVERED and self.image is None:
            raise ValueError("RECOVERED must come with an image, found None")

    @property
    def certainty(self) -> Certainty | None:
        """How sure the image is; None without one."""
        return _certainty(self.status, self.image, self.error)


@dataclass(frozen=True, eq=False)
class Reconstruction(BatchVerdict):
    """What an image attack answers.

    Args:
        status: RECOVERED if every example is.
        reason: one sentence, unless RECOVERED.
        examples: one for each of the batch, in the label recovery's order; none where the attack
            gave up before.
        pixel_range: the images' least and largest value: [0, 1], or where the leak doesn't say
            what became of pixels before the model, and its input isn't in [0, 1], that input's.
        gradient_evaluations: how often a search computed the model's gradient, over all starts: the
            cost that compares across machines; None of attacks that don't search so.
        method: the attack that did the work, by its registered name, where another one chose it.

    Raises:
        TypeError: a part is of another type.
        ValueError: a part doesn't fit the others, or is no such part.
    """

    examples: tuple[ExampleImage, ...] = ()
    pixel_range: tuple[float, float] = (0.0, 1.0)
    gradient_evaluations: int | None = None
    method: str | None = None

    _example_type: ClassVar[type] = ExampleImage

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_alike("images", [example.image for example in self.examples])
        ends = self.pixel_range
        if not (
            isinstance(ends, tuple)
            and len(ends) == 2
            and all(isinstance(end, int | float) and math.isfinite(end) for end in ends)
            and ends[0] < ends[1]
        ):
            raise ValueError(
                f"pixel_range must be two finite numbers, the lower first, found {ends!r}"
            )
        count = self.gradient_evaluations
        if count is not None and not (isinstance(count, int) and count >= 0):
            raise ValueError(
                f"gradient_evaluations must be a whole number or None, found {count!r}"
            )
        low, high = ends
        for example in self.examples:
            image = example.image
            if image is not None and not low <= image.min() <= image.max() <= high:
                found = f"[{float(image.min()):g}, {float(image.max()):g}]"
                raise ValueError(f"images must be in [{low:g}, {high:g}], found {found}")

    @classmethod
    def of(
        cls,
        examples: Sequence[ExampleImage],
        *,
        pixel_range: tuple[float, float] = (0.0, 1.0),
        gradient_evaluations: int | None = None,
    ) -> Reconstruction:
        """Put a batch's answer together: its status is that of most of the failures."""
        status, reason = _overall(examples, "images")
        return cls(status, reason, tuple(examples), pixel_range, gradient_evaluations)

    @functools.cached_property
    def images(self) -> Tensor | None:
        """(B, C, H, W), NaN where there is none; None without any."""
        return _stack([example.image for example in self.examples])

    def require_fit(self, *, batch_size: int | None, shape: tuple[int, int, int]) -> None:
        """Check an answer against what was attacked.

        Args:
            batch_size: B; None where the attacker doesn't know it.
            shape: (C, H, W) of one image.

        Raises:
            ValueError: it holds another number of examples, or images of another shape.
        """
        _require_number(self.examples, batch_size)
        if self.images is not None and self.images.shape[1:] != shape:
            raise ValueError(
                f"images must have the shape {shape}, found {tuple(self.images.shape[1:])}"
            )


Example = ExampleLabel | ExampleImage


def known(measure: float | None) -> float | None:
    """Return a measure as a record holds it: None for one that came out infinite or as NaN."""
    return None if measure is None or not math.isfinite(measure) else float(measure)


def without_claim(example: ExampleLabel, reason: str) -> ExampleLabel:
    """Return an example's answer as NOT_IDENTIFIABLE, all else as it is."""
    return dataclasses.replace(example, status=Status.NOT_IDENTIFIABLE, reason=reason)


def _certainty(status: Status, found: Tensor | None, bar: float | None) -> Certainty | None:
    if found is None:
        return None
    if status is Status.RECOVERED:
        return Certainty.VOUCHED
    return Certainty.GUESS if bar is None else Certainty.LIKELY


def _overall(examples: Sequence[Example], noun: str) -> tuple[Status, str | None]:
    """Return the status and the reason of a whole batch."""
    failed = [example for example in examples if example.status is not Status.RECOVERED]
    if not failed:
        return Status.RECOVERED, None
    if len(examples) == 1:
        return failed[0].status, failed[0].reason
    status, _ = Counter(example.status for example in failed).most_common(1)[0]
    count = f"{len(examples) - len(failed)} of {len(examples)} {noun} recovered"
    return status, f"{count}; why others weren't: {failed[0].reason}"


def _stack(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return rows as one tensor, NaN where there is none."""
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    nothing = torch.full_like(first, torch.nan)
    return torch.stack([nothing if part is None else part for part in parts])


def _require_examples(status: Status, examples: tuple[Any, ...], kind: type) -> None:
    require_type("examples", examples, tuple)
    for example in examples:
        require_type("each of the examples", example, kind)
    recovered = [example.status is Status.RECOVERED for example in examples]
    if (status is Status.RECOVERED) != (all(recovered) and bool(recovered)):
        raise ValueError(
            "status must be RECOVERED if and only if every example is, found "
            f"{status} with {sum(recovered)} of {len(recovered)} RECOVERED"
        )


def _require_number(examples: Sequence[Example], batch_size: int | None) -> None:
    if examples and batch_size not in (None, len(examples)):
        raise ValueError(f"it must answer on {batch_size} examples or none, found {len(examples)}")


def _require_alike(name: str, parts: Sequence[Tensor | None]) -> None:
    shapes = {tuple(part.shape) for part in parts if part is not None}
    if len(shapes) > 1:
        raise ValueError(f"all {name} must have one shape, found {sorted(shapes)}")


def require_type(name: str, value: object, kind: type) -> None:
    """Raise a `TypeError` that names what is of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, found {type(value).__name__}")


def _require_tensor(
    name: str, value: Tensor | None, axes: str, *, may_be_nan: bool = False
) -> None:
    """Check that a tensor is float64 on its own, with one dimension for each of the axes."""
    if value is None:
        return
    require_type(name, value, Tensor)
    if value.ndim != len(axes) or value.dtype != torch.float64:
        shape = f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"
        found = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        raise ValueError(f"{name} must be a {shape} float64 tensor, found {found}")
    if value.requires_grad:
        raise ValueError(f"{name} must be detached from autograd's graph, found one that is not")
    if not (value.isfinite() | (value.isnan() if may_be_nan else False)).all():
        raise ValueError(f"{name} must be finite, found {value}")


def _require_measure(name: str, value: float | None) -> None:
    if value is None:
        return
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite float of at least 0, or None, found {value!r}")
