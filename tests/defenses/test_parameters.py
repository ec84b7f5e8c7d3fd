"""Parameters out of range get one sentence, in one form for all defenses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from defenses import DEFENSES

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("cutmix", {"alpha": 0.0}, "alpha must be a finite number above 0, found 0.0"),
    ("vicinal", {"alpha": math.nan}, "alpha must be a finite number above 0, found nan"),
    ("vicinal", {"kind": "swap"}, "kind must be 'double-mix', 'reverse' or 'recombine', found"),
    ("dropout", {"p": 1.0}, r"p must be a finite number in \[0, 1\), found 1.0"),
    ("precode", {"size": 0}, "size must be a whole number of at least 1, found 0"),
    ("precode", {"size": True}, "size must be a whole number of at least 1, found True"),
    ("precode", {"beta": -1.0}, "beta must be a finite number of at least 0, found -1.0"),
    ("gradient-clipping", {"clipping_norm": 0}, "clipping_norm must be a finite number above 0"),
    ("gradient-clipping", {"clipping_norm": math.inf}, "above 0, found inf"),
    ("learning-rate-noise", {"low": 0.0}, "low must be a finite number above 0, found 0.0"),
    ("learning-rate-noise", {"low": 2.0, "high": 1.0}, "high must be a finite number of at least"),
    ("soteria", {"pruning_rate": 1.0}, r"pruning_rate must be a finite number in \[0, 1\)"),
    ("outpost", {"beta": -0.1}, "beta must be a finite number of at least 0, found -0.1"),
    ("outpost", {"sparsity": 1.0}, r"sparsity must be a finite number in \[0, 1\), found 1.0"),
    ("outpost", {"noise": "1"}, "noise must be a finite number of at least 0, found '1'"),
    ("outpost", {"fisher_share": 1.1}, r"fisher_share must be a finite number in \[0, 1\]"),
    ("pruning", {"sparsity": 1.0}, r"sparsity must be a finite number in \[0, 1\), found 1.0"),
    ("pruning", {"criterion": "size"}, "criterion must be 'magnitude' or 'random', found 'size'"),
    ("pruning", {"scope": "all"}, "scope must be 'update' or 'layer', found 'all'"),
    ("quantization", {"levels": 0}, "levels must be a whole number of at least 1, found 0"),
    ("quantization", {"levels": 2.0}, "levels must be a whole number of at least 1, found 2.0"),
    ("dp-noise", {"noise_std": 1.0, "distribution": "uniform"}, "must be 'gaussian' or 'laplace'"),
    (
        "dp-noise",
        {"noise_std": 1.0, "noise_multiplier": 1.0},
        "by noise_multiplier or by noise_std",
    ),
    (
        "dp-noise",
        {"clipping_norm": 1.0},
        "by noise_multiplier or by noise_std, found None and None",
    ),
    ("dp-noise", {"noise_multiplier": 1.0}, "noise_multiplier is relative to clipping_norm, found"),
    ("dp-noise", {"noise_std": -1.0}, "noise_std must be a finite number of at least 0, found -1"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), BAD)
def test_out_of_range(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DEFENSES.build(name, **options)
