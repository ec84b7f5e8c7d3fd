"""`fl-sim capture`: a capture of anyone's update."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fl_sim.errors import UserError
from fl_sim.scenario.changes import parse_change
from fl_sim.terminal.display import set_logging

NUMBERS = typer.Option(metavar="N[,N…]", help="Of each channel, as the client's loader has them.")


def capture(
    ctx: typer.Context,
    before: Annotated[
        Path, typer.Option(metavar="FILE", help="The weights that the client received.")
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME|module:attr", help="What builds the network.")
    ],
    input_shape: Annotated[str, typer.Option(metavar="C,H,W", help="Of one image.")],
    classes: Annotated[int, typer.Option(min=1, help="How many there are.")],
    after: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The weights that came back.")
    ] = None,
    gradient: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of --after: the gradient itself.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="The client's learning rate.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in a step.", show_default="not known")
    ] = None,
    local_steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    local_epochs: Annotated[
        int | None, typer.Option(help="Instead of steps, with --examples.")
    ] = None,
    examples: Annotated[int | None, typer.Option(help="Distinct ones, in all steps.")] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="full-batch|epochs|steps", help="What each step takes.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw, rmsprop or adagrad.")] = "sgd",
    momentum: Annotated[float, typer.Option()] = 0.0,
    nesterov: Annotated[bool, typer.Option("--nesterov")] = False,
    dampening: Annotated[float, typer.Option(help="Of the momentum.")] = 0.0,
    weight_decay: Annotated[float, typer.Option()] = 0.0,
    mode: Annotated[
        str, typer.Option(metavar="eval|train", help="Of batch norm and dropout.")
    ] = "eval",
    bias: Annotated[bool, typer.Option("--bias", help="A listed network's biases.")] = False,
    model_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="More for the model; repeatable.")
    ] = None,
    mean: Annotated[str | None, NUMBERS] = None,
    std: Annotated[str | None, NUMBERS] = None,
    round_: Annotated[int, typer.Option("--round", min=1, help="For the records.")] = 1,
    client: Annotated[int, typer.Option(min=0, help="For the records.")] = 0,
    noisy: Annotated[
        bool,
        typer.Option("--noisy", help="It was noised or quantised: don't ask whether it belongs."),
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FILE")] = Path("update.safetensors"),
) -> None:
    """Make a capture of an update of your own, for `fl-sim attack`; print its path last.

    Files are safetensors, NumPy archives (.npz) or checkpoints of `torch.save(state_dict)`, and
    none of them runs code. Weights and an update that don't belong together are refused.
    """
    if (after is None) == (gradient is None):
        raise UserError("--after or --gradient must be given, one of them")
    if out.is_dir():
        raise UserError(f"--out must be a file, found the folder {out}")
    shape = _numbers("--input-shape", input_shape, int)
    from fl_sim.capture.make import make_capture, recipe_of, training_of, update_of

    set_logging(verbose=False, debug=ctx.find_root().params["debug"])
    training = training_of(
        {
            "lr": lr,
            "batch_size": batch_size,
            "local_steps": local_steps,
            "local_epochs": local_epochs,
            "examples": examples,
            "schedule": schedule,
            "optimizer": optimizer,
            "momentum": momentum,
            "nesterov": nesterov,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "mode": mode,
            "sends": "weights" if gradient is None else "gradient",
        }
    )
    options = dict(map(parse_change, model_option or ()))
    recipe = recipe_of(model, options=options, classes=classes, input_shape=shape, bias=bias)
    loader = (
        None if mean is None and std is None else (_floats("--mean", mean), _floats("--std", std))
    )
    told = update_of(round_, client, training, recipe, loader)
    made = make_capture(before, after or gradient or before, recipe, told)
    problem = made.belonging.contradiction
    if problem is not None and not noisy:
        raise UserError(
            f"{before} and {after or gradient} don't belong together: {problem}; is one of them of "
            "another round? (--noisy keeps an update that was noised or quantised)"
        )
    made.write(out)
    typer.echo(_verdict(made.belonging.tested, is_noisy=noisy))
    typer.echo(out)


def _verdict(tested: int, *, is_noisy: bool) -> str:
    if is_noisy or not tested:
        return "nothing tells whether the weights and the update belong together"
    layers = "linear layer" if tested == 1 else "linear layers"
    return f"the weights and the update fit each other, as far as {tested} {layers} can show"


def _floats(name: str, text: str | None) -> Sequence[float]:
    if text is None:
        raise UserError("--mean and --std go together, found one")
    return _numbers(name, text, float)


def _numbers(name: str, text: str, kind: type[Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(
            f"{name} must be numbers with commas between them, found {text!r}"
        ) from error
