"""What is wrong with the options of a `LeakageAudit`, found before the first round."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from fl_sim.errors import UserError
from fl_sim.flower.wire import LocalTraining
from fl_sim.leakage.findings import Finding
from fl_sim.leakage.plan import AttackPlan
from fl_sim.leakage.records import append_lines
from fl_sim.seeds import seeded_layers

Log = Callable[[int, list[Finding]], None]


def check_types(
    attacks: object, training: object, judge: object, *, may_be_none: bool = False
) -> None:
    """Raise unless an audit's parts are what they must be.

    Args:
        attacks: a list of them.
        training: how the clients train.
        judge: holds the truth, or None.
        may_be_none: whether the list may be empty: updates are kept, for later.

    Raises:
        TypeError: attacks is no list, training no LocalTraining, or judge no Judge.
        ValueError: attacks is empty.
    """
    if not isinstance(attacks, Sequence) or isinstance(attacks, str):
        raise TypeError(
            'attacks must be a list, as in ["soft-label"] or [("soft-label", "analytic")], found '
            f"{attacks!r}"
        )
    if not attacks and not may_be_none:
        raise ValueError("attacks must name at least one, found an empty list")
    if not isinstance(training, LocalTraining):
        raise TypeError(f"training must be a LocalTraining, found {type(training).__name__}")
    known = {*dir(judge), *getattr(judge, "__dict__", {})}
    missing = [name for name in ("baseline", "truth", "label_mass") if name not in known]
    if judge is not None and missing:
        raise TypeError(
            "judge must have baseline, truth() and label_mass(), as fl_sim.Judge says, found "
            f"{type(judge).__name__} without {missing[0]}"
        )


def check_one_round_each(plans: Sequence[AttackPlan], *, may_combine: bool) -> None:
    """Raise where an attack takes rounds together, and nobody keeps them for it.

    Raises:
        ValueError: one does.
    """
    for index, plan in enumerate(plans):
        if plan.combines_rounds and not may_combine:
            raise ValueError(
                "attacks that take rounds together work off captures, which an audit in one's own "
                f"app doesn't keep: found one at position {index}"
            )


def check_keeping(keep_images: object, out: object, log: object) -> None:
    """Raise unless records and images have a place to go to.

    Raises:
        TypeError: keep_images is no number.
        ValueError: it is below 0, or comes without `out`; neither `out` nor `log` is given.
    """
    if out is None and log is None:
        raise ValueError(
            "out or log must be given, found neither: the records have to go somewhere"
        )
    if not isinstance(keep_images, int):
        raise TypeError(f"keep_images must be a whole number or True, found {keep_images!r}")
    if keep_images < 0:
        raise ValueError(f"keep_images must be at least 0, found {keep_images}")
    if keep_images and out is None:
        raise ValueError(f"keep_images belongs to out, found {keep_images} without it")


def fitting_names(
    names: Sequence[str] | None, model: nn.Module, input_shape: tuple[int, int, int]
) -> list[str] | None:
    """Return the classes' names as a list.

    Raises:
        TypeError: they aren't a sequence of strings.
        ValueError: they are more or fewer than the model's classes, or the model can't be run.
    """
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names must be a list of strings, found {names!r}")
    classes = number_of_classes(model, input_shape, "class_names")
    if len(names) != classes:
        raise ValueError(
            f"class_names must be {classes}, one for each of the model's classes, found "
            f"{len(names)}: {', '.join(names)}"
        )
    return list(names)


def number_of_classes(model: nn.Module, input_shape: tuple[int, int, int], what: str) -> int:
    """Return K, from the model's output for a black image.

    Args:
        model: the network.
        input_shape: (C, H, W) of one image.
        what: the option that K is needed for.

    Raises:
        ValueError: the model can't be run.
    """
    model = copy.deepcopy(model).eval()
    dtype = next(model.parameters()).dtype
    try:
        with torch.no_grad(), seeded_layers(0, torch.device("cpu")):
            output = model(torch.zeros(1, *input_shape, dtype=dtype))
        return int(output.shape[-1])
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"{what} can't be compared with a model that {(1, *input_shape)} can't go through: "
            f"{type(error).__name__}: {error}"
        ) from error


def file_log(path: Path) -> Log:
    """Return a log that writes a line for each record to a file of its own.

    Raises:
        UserError: the file holds something: a run never adds to another.
    """
    if path.is_dir():
        raise UserError(f"log must be a file, found the folder {path}: a folder is given as out")
    if path.exists() and path.stat().st_size:
        raise UserError(f"log must be a new file, and {path} holds another run: name another")

    def log(server_round: int, findings: list[Finding]) -> None:
        append_lines(path, [finding.record.to_json() for finding in findings])

    return log


def plan_of(attack: AttackPlan | str | tuple[str, str]) -> AttackPlan:
    """Return the plan that is given, or build one from the attacks' names.

    Raises:
        ValueError: a name is unknown.
    """
    if isinstance(attack, AttackPlan):
        return attack
    names = (attack,) if isinstance(attack, str) else attack
    return AttackPlan.by_name(*names)
