"""The lines of `leakage.jsonl` and `rounds.jsonl`."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_sim.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class LeakageRecord:
    """What one attack learned of one example of one client in one round; flat, JSON-able.

    Of an attack that takes rounds together `round` is that after which it ran, and `rounds` says
    which it used, as in "1-3, 5".

    `example` is the position among the round's distinct examples, in a single step that in the
    batch; None for replies that couldn't be attacked. `examples` counts them, in truth or, without
    a judge, as the server knows; `batch_size` is that of one step. `true_labels` says how many
    different labels the client gave an example in the round: more than 1 where a defense draws anew
    in each epoch, and then errors are those against the nearest.

    Recovered values stand under their own names, errors against the truth under `..._error`, the
    guesses of an attacker who saw no update under `baseline_...` or `..._chance`. `label_class` is
    the largest class of a recovered label, `label_second_class` the other one of a mixed label, and
    `label_class_name` what they are called, where that was told. The attacker's own certainty is
    "vouched" (the status is RECOVERED), "likely" (with an error bar: `label_bar`, L∞ of the label,
    `image_bar`, the image's root mean square error in pixels) or "guess"; `label_candidates` is the
    number of labels that fit where several do. None means: doesn't apply or isn't known.

    `image_low` and `image_high` are the range of an image's values: 0 and 1, or what the model
    takes where the attacker doesn't know how the client's loader normalises; such an image isn't
    scored. `image_method` is the attack that did the work where `image_attack` chose one,
    `gradient_evaluations` what a search cost for the whole update, and `image_spread` the root mean
    square over pixels of the standard deviation over its starts. `identified` says whether the
    client's own image is the nearest to the recovered one, in pixels, among all that the client
    trained on in the round and up to 1,000 others. `psnr_original_db` compares it with the nearest
    of the images that the client's example was mixed from. The line of a count attack stands for
    all examples of an update, each as often as it was used: `mass_tv` is the total variation
    distance in [0, 1] between the recovered and the true class shares (lower is better),
    `mass_irec` the share of instances recovered (higher is better). Under secure aggregation
    `client` is None, and `members` lists the numbers of those whose mean was attacked, with spaces
    between them. `unused_facts` names what an aware attacker knows of the defenses and its attacks
    don't take into account.
    """

    round: int
    client: int | None
    members: str | None = None
    attack: int | None = None
    rounds: str | None = None
    example: int | None = None
    batch_size: int | None = None
    examples: int | None = None
    defenses: str = "none"
    attacker: str | None = None
    unused_facts: str | None = None
    label_attack: str | None = None
    label_status: str | None = None
    label_reason: str | None = None
    label_class: int | None = None
    label_second_class: int | None = None
    label_class_name: str | None = None
    label_certainty: str | None = None
    label_bar: float | None = None
    label_linf: float | None = None
    label_l1: float | None = None
    label_top1: bool | None = None
    augmentation: str | None = None
    smoothing: float | None = None
    mixing: float | None = None
    true_augmentation: str | None = None
    true_labels: int | None = None
    smoothing_error: float | None = None
    mixing_error: float | None = None
    feature_error: float | None = None
    gradient_scale: float | None = None
    label_residual: float | None = None
    label_certificate: float | None = None
    label_candidates: int | None = None
    label_seconds: float | None = None
    baseline_top1: bool | None = None
    mass_tv: float | None = None
    mass_tv_chance: float | None = None
    mass_irec: float | None = None
    mass_irec_chance: float | None = None
    image_attack: str | None = None
    image_method: str | None = None
    image_status: str | None = None
    image_reason: str | None = None
    image_certainty: str | None = None
    image_bar: float | None = None
    image_spread: float | None = None
    image_low: float | None = None
    image_high: float | None = None
    psnr_db: float | None = None
    psnr_registered_db: float | None = None
    psnr_original_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    lpips_reason: str | None = None
    identified: bool | None = None
    baseline_psnr_db: float | None = None
    baseline_class_psnr_db: float | None = None
    image_residual: float | None = None
    image_seconds: float | None = None
    gradient_evaluations: int | None = None
    schema: int = SCHEMA

    @property
    def senders(self) -> tuple[int, ...]:
        """Who sent what was attacked: the client, or all members; nobody where neither is told."""
        return senders(vars(self))

    def to_json(self) -> str:
        """Return the record as one line of JSON; NaN and infinities become null."""
        values = {name: _plain(value) for name, value in vars(self).items()}
        return json.dumps(values, allow_nan=False)


def senders(record: Mapping[str, Any]) -> tuple[int, ...]:
    """Return who sent what a line of `leakage.jsonl` is about.

    Example:
        >>> senders({"client": 3}), senders({"client": None, "members": "0 4"})
        ((3,), (0, 4))
    """
    if record.get("client") is not None:
        return (int(record["client"]),)
    return tuple(map(int, (record.get("members") or "").split()))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; a last line that was torn by a kill is left out.

    A last line is torn when its newline is missing or when it isn't a JSON object.

    Returns:
        One mapping for each line; empty if there is no file.

    Raises:
        UserError: a line before the last isn't a JSON object.
    """
    return [record for record, _ in _whole_lines(path)]


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines in one write, and return when they are on the disk.

    A file with a torn last line must be cut first, by `truncate_after`.

    Args:
        path: the file; created if missing.
        lines: without their newlines, as `LeakageRecord.to_json` returns them.
    """
    with path.open("ab") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def truncate_after(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cut a JSON-lines file after the leading run of lines that `keep` accepts.

    A torn last line goes, too. The file is replaced atomically: a kill leaves the old or the new
    one. Without a file nothing happens.

    Raises:
        UserError: a line before the last isn't a JSON object.
    """
    if not path.exists():
        return
    kept = itertools.takewhile(lambda pair: keep(pair[0]), _whole_lines(path))
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.writelines(line + b"\n" for _, line in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _whole_lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Parse a file's lines and return them beside their bytes, without a torn last one."""
    if not path.exists():
        return []
    whole: list[tuple[dict[str, Any], bytes]] = []
    *lines, rest = path.read_bytes().split(b"\n")  # the rest is empty, or torn
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # JSONDecodeError, or UnicodeDecodeError from half a character
            record = None
        if isinstance(record, dict):
            whole.append((record, line))
        elif rest or number < len(lines):
            raise UserError(f"{path}: line {number} must be a JSON object, found {line[:80]!r}")
    return whole
