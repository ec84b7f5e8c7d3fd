"""Compression of an update, with what it loses carried over to the client's next one.

Karimireddy, Rebjock, Stich and Jaggi, *Error Feedback Fixes SignSGD and other Gradient Compression
Schemes*, ICML 2019, arXiv 1901.09847, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from defenses.base import Gradients, Place, WithState

Compressor = Callable[[Gradients], Mapping[str, Tensor]]


def compress(
    update: Gradients, place: Place, compressor: Compressor, *, error_feedback: bool
) -> Gradients | WithState:
    """Return `C(Δ)`, or with error feedback `C(Δ + e)` and the new `e ← Δ + e − C(Δ + e)`.

    Args:
        update: Δ, parameter name -> tensor.
        place: its state holds e; none in the client's first round.
        compressor: C.
        error_feedback: whether e is kept.
    """
    if not error_feedback:
        return compressor(update)
    errors = place.state
    whole = {name: part + errors[name] if name in errors else part for name, part in update.items()}
    sent = compressor(whole)
    return WithState(sent, {name: part - sent[name] for name, part in whole.items()})
