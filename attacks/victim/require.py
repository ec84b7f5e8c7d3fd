"""What attacks ask of a leak before they look at it; each rule with the sentence for its breach."""

from __future__ import annotations

from torch import nn

from attacks.types import GradientLeak, NotApplicable


def require_values(leak: GradientLeak) -> None:
    """Raise `NotApplicable` unless the update shows the gradient's values.

    Raises:
        NotApplicable: it shows signs alone.
    """
    if leak.keeps == "signs":
        raise NotApplicable(
            "the update holds only the signs of the gradient's entries, as the first step of Adam "
            "and its kin leaves them, and this attack needs their values; one example's class can "
            "still be read off, by idlg"
        )


def require_one_step(leak: GradientLeak) -> None:
    """Raise `NotApplicable` unless one SGD step is behind.

    Raises:
        NotApplicable: several steps.
    """
    if leak.local_steps > 1:
        raise NotApplicable(
            f"the update sums {leak.local_steps} local steps; this attack needs the gradient of one"
        )


def require_one_example(leak: GradientLeak) -> None:
    """Raise `NotApplicable` unless one SGD step on one example (or on an unknown number) is behind.

    Raises:
        NotApplicable: several steps, or a batch.
    """
    require_one_step(leak)
    if leak.batch_size is not None and leak.batch_size > 1:
        raise NotApplicable(f"the batch has {leak.batch_size} examples; this attack works on one")


def require_known_layers(leak: GradientLeak) -> None:
    """Raise `NotApplicable` if a layer did to the client's image what the server can't repeat.

    Raises:
        NotApplicable: dropout or batch norm in train mode.
    """
    drawing = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    for name, module in leak.model.named_modules():
        if leak.mode == "train" and isinstance(module, drawing):
            raise NotApplicable(
                f"layer {name!r} ({type(module).__name__}) ran in train mode, which the server "
                "can't repeat"
            )
