"""One round alone, under noise that is told: by `attacks.rounds` where that says more.

Who knows the noise, or the levels that entries were rounded to, knows how likely each example makes
what was sent. Other ways, which take a gradient for exact, are asked first: they are faster.
"""

from __future__ import annotations

from collections.abc import Callable

from attacks.types import GradientLeak
from attacks.ways import Answer, best_of


def is_noise_known(leak: GradientLeak) -> bool:
    """Say whether a leak is of one step under noise that is told, and nothing else changed it.

    One example under noise alike in all entries is found as well by its layers' leading directions.
    """
    told, batch = leak.told, leak.batch_size
    if leak.local_steps != 1 or batch is None or told.has_lost_entries or leak.mode == "train":
        return False
    return told.is_rounded or (bool(told.noise_std) and batch > 1)


def with_noise_known(
    leak: GradientLeak, plain: Callable[[], Answer], by_likelihood: Callable[[], Answer]
) -> Answer:
    """Return what is found without the noise's size, or with it where that says more.

    Raises:
        NotApplicable: neither way finds anything.
    """
    return best_of(plain, by_likelihood) if is_noise_known(leak) else plain()
