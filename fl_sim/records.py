"""The lines of `leakage.jsonl` and `rounds.jsonl`."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class LeakageRecord:
    """What one attack learned of one example of one client in one round; flat, JSON-able.

    `example` is the position in the batch, None for replies that couldn't be attacked. Recovered
    values stand under their own names, errors against the truth under `..._error`, the guesses of
    an attacker who saw no update under `baseline_...`. None means: doesn't apply or isn't known.
    """

    round: int
    client: int | None
    attack: int | None = None
    example: int | None = None
    batch_size: int | None = None
    defenses: str = "none"
    attacker: str | None = None
    label_attack: str | None = None
    label_status: str | None = None
    label_reason: str | None = None
    label_linf: float | None = None
    label_l1: float | None = None
    label_top1: bool | None = None
    augmentation: str | None = None
    smoothing: float | None = None
    mixing: float | None = None
    true_augmentation: str | None = None
    smoothing_error: float | None = None
    mixing_error: float | None = None
    feature_error: float | None = None
    label_residual: float | None = None
    label_certificate: float | None = None
    label_seconds: float | None = None
    baseline_top1: bool | None = None
    image_attack: str | None = None
    image_status: str | None = None
    image_reason: str | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    baseline_psnr_db: float | None = None
    image_residual: float | None = None
    image_seconds: float | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the record as one line of JSON; NaN and infinities become null."""
        return json.dumps({k: _plain(v) for k, v in dataclasses.asdict(self).items()})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that was torn by a kill is left out.

    Raises:
        ValueError: a line before the last isn't JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole, _torn = lines[:-1], lines[-1]
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} isn't a JSON-lines file: {error}") from error
