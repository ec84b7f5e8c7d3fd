"""The objective and its slope at many starts at once, as one list of tensor operations.

The list is traced once and played back; a compiler makes machine code of it, or a GPU keeps it as
one recording of its kernels, which then costs one launch instead of hundreds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from attacks.matching.models import Model
from attacks.matching.objectives import Distance, Prior, Seen
from attacks.matching.search import Evaluate
from attacks.matching.unknowns import Unknowns
from attacks.victim.batch_norm import Statistics
from attacks.victim.differentiable import DifferentiableVictim, Tensors

TRACED = 100
"""Calls from which tracing, a second or two, pays."""
AGREES = 1e-4
"""Largest relative difference of a traced function from what was traced, in float32."""


class Given(NamedTuple):
    """What differs between the clients of one model: tensors in the search's precision.

    Args:
        target: the gradient that was sent, by the parameters' names.
        labels: (N, K) where they are given; None where they are looked for.
        features: (N, D) where the label attack recovered them and a prior asks; or None.
        has_length: (N,), 1 where a feature's length is known, 0 where its direction alone is.
        statistics: batch norm layer -> mean (C,) and variance (C,) where a prior asks; or None.
    """

    target: Tensors
    labels: Tensor | None = None
    features: Tensor | None = None
    has_length: Tensor | None = None
    statistics: Statistics | None = None

    @property
    def known(self) -> dict[str, Any]:
        """What there is, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


@dataclass(frozen=True, eq=False)
class Problem:
    """What a method asks of rows: a distance to what was sent, and priors.

    Args:
        victim: whose gradient is matched.
        given: of its client.
        model: of the client's training.
        unknowns: what rows stand for.
        distance: of gradients.
        priors: of images.
        watched: layers whose inputs priors look at.
        start: (N, C, H, W), images from which the first start sets out, NaN where there is none;
            None: all are drawn.
    """

    victim: DifferentiableVictim
    given: Given
    model: Model
    unknowns: Unknowns
    distance: Distance
    priors: tuple[Prior, ...] = ()
    watched: tuple[str, ...] = ()
    start: Tensor | None = None

    def draw(self, starts: int, generator: torch.Generator) -> Tensor:
        """Draw rows (R, size), the first one from what there is to set out from."""
        rows = self.unknowns.draw(starts, generator, self.victim.dtype)
        if self.start is not None:
            known = self.start.repeat(self.unknowns.epochs, 1, 1, 1).reshape(-1).to(rows)
            drawn = rows[0, : len(known)]
            rows[0, : len(known)] = torch.where(known.isfinite(), known, drawn)
        return rows

    def loss(self, row: Tensor, centre: Tensor, given: Given) -> Tensor:
        """Return the objective of one client at a row (size,).

        Args:
            row: what it is looked at.
            centre: the mean row of all its starts.
            given: of the client.
        """
        candidate = self.unknowns.read(row, given.labels)
        victim = replace(self.victim, target=given.target)
        gradient, inputs = self.model(victim, candidate, self.watched)
        loss = self.distance(gradient, given.target)
        seen = Seen(
            candidate,
            inputs,
            self.unknowns.images(centre),
            given.features,
            given.has_length,
            given.statistics,
        )
        for prior in self.priors:
            loss = loss + prior(seen)
        return loss

    def gradient(self, row: Tensor) -> Tensor:
        """Return the gradient of a row (size,) as one vector (P,), differentiable."""
        parts, _ = self.model(self.victim, self.unknowns.read(row, self.given.labels), ())
        return torch.cat([parts[name].reshape(-1) for name in self.given.target])

    @property
    def target(self) -> Tensor:
        """What was sent, as one vector (P,)."""
        return torch.cat([part.reshape(-1) for part in self.given.target.values()])


def on_device(problems: Sequence[Problem], device: torch.device) -> list[Problem]:
    """Return problems of one model with their tensors on a device, where they share its victim.

    What a search starts from stays where it is.
    """
    victim = problems[0].victim.to(device)
    return [
        replace(
            problem,
            victim=victim,
            given=tree_map_only(Tensor, lambda part: part.to(device), problem.given),
        )
        for problem in problems
    ]


def evaluation_of(
    problems: Sequence[Problem], starts: int, calls: int, *, is_compiled: bool = False
) -> Evaluate:
    """Return the losses and gradients of rows: each client's starts, one client after another.

    Args:
        problems: alike but for what is given.
        starts: R, of each.
        calls: how many there will be at most.
        is_compiled: whether a C++ compiler is to make machine code of it, which takes a minute.
    """
    problem, clients = problems[0], len(problems)
    slope = grad_and_value(lambda row, centre, given: problem.loss(row, centre, Given(**given)))
    victim = problem.victim
    example = torch.full((problem.unknowns.size,), 0.5, dtype=victim.dtype, device=victim.device)
    given, axis = problem.given.known, None
    if clients * starts == 1:
        run = _prepared(slope, (example, example, given), calls, is_compiled)

        def evaluate_one(rows: Tensor) -> tuple[Tensor, Tensor]:
            gradient, loss = run(rows[0], rows[0], given)
            return loss[None], gradient[None]

        return evaluate_one
    if clients > 1:
        every = [problem.given.known for problem in problems]
        given, axis = tree_map(lambda *parts: _repeated(parts, starts), *every), 0
    rows = example.expand(clients * starts, -1).clone()
    together = vmap(slope, in_dims=(0, 0, axis))
    run = _prepared(together, (rows, rows, given), calls, is_compiled)

    def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
        groups = rows.reshape(clients, starts, -1)
        centre = groups.mean(dim=1, keepdim=True).expand_as(groups).reshape(rows.shape)
        gradient, loss = run(rows, centre, given)
        return loss, gradient

    return evaluate


def _repeated(parts: Sequence[Tensor], starts: int) -> Tensor:
    return torch.stack([part for part in parts for _ in range(starts)])


def _prepared(
    function: Callable[..., Any], examples: tuple[Any, ...], calls: int, is_compiled: bool
) -> Callable[..., Any]:
    run = traced(function, *examples) if calls >= TRACED else function
    if is_compiled:
        return torch.compile(run)
    return recorded(run, *examples) if examples[0].is_cuda and run is not function else run


def traced(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """Return a function as the list of tensor operations that it comes to, autograd's included.

    Played back, that costs nothing but the operations. Where a function can't be traced, or what
    was traced differs from it elsewhere (it decides by values), it is returned itself.

    Args:
        function: of tensors.
        examples: trees of such.
    """
    # Copies, since a tensor that is given twice would be traced as one.
    examples = tree_map(torch.clone, examples)
    draws = torch.Generator().manual_seed(0)
    others = tree_map(
        lambda part: (
            part * (0.5 + torch.rand(part.shape, generator=draws, dtype=part.dtype)).to(part.device)
        ),
        examples,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants that are baked in
            module = make_fx(function)(*examples)
        module.graph.eliminate_dead_code()
        module.recompile()
        with torch.no_grad():
            replayed = module(*others)
    except Exception:  # a user's model may do anything
        return function
    expected = function(*others)

    def replay(*given: Any) -> Any:
        with torch.no_grad():
            return module(*given)

    same = all(
        torch.allclose(a, b, rtol=AGREES, atol=AGREES * float(b.abs().max()), equal_nan=True)
        for a, b in zip(tree_leaves(replayed), tree_leaves(expected), strict=True)
    )
    return replay if same else function


def recorded(function: Callable[..., Any], *examples: Any) -> Callable[..., Any]:
    """Return a function of tensors on a GPU as one recording of its kernels (a CUDA graph).

    One that waits for the GPU on its way (for how many entries are nonzero, say) can't be recorded,
    and is returned itself.

    Args:
        function: of rows, centres and what is given.
        examples: of these; what is given is that of all calls.
    """
    *moving, given = examples
    held = [torch.clone(part) for part in moving]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(*held, given)  # libraries choose their kernels, and ask for memory
        if _waits(lambda: function(*held, given)):
            return function
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*held, given)

    def replay(*parts: Any) -> Any:
        for own, part in zip(held, parts[:-1], strict=True):
            own.copy_(part)
        graph.replay()
        return tree_map(torch.clone, results)

    return replay


def _waits(run: Callable[[], Any]) -> bool:
    """Say whether a run waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may not see every wait
        try:
            torch.cuda.set_sync_debug_mode("error")
            run()
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return False
