"""A batch taken apart: one rank-one problem for each example, and their answers together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attacks.answers import ExampleLabel, LabelRecovery, Status, known, without_claim
from attacks.batch.accept import Example, accept, certify, gradient_factor
from attacks.batch.explain import Explanation
from attacks.batch.labels import rank_one_parts, with_single_precision_labels
from attacks.batch.propose import propose
from attacks.batch.rest import peel
from attacks.batch.sharpen import Ray, sharpen
from attacks.batch.subspace import Subspace, find_subspace
from attacks.one_example.problem import OWN_EPS, Problem
from attacks.types import GradientLeak, NotApplicable
from attacks.victim.loss import OTHER_LOSS, is_of_another_loss
from attacks.victim.network import Network

MISSING = "its feature wasn't found among those that the last layer's gradient and a label agree on"
DISAGREEMENT = (
    "its label by its own feature isn't confirmed by that from all features together: some may be "
    "false"
)
FINE_LABEL = 1e-10
"""Error of the gradient's factor up to which a label has double precision."""
AGREED = 1e-2
"""Largest difference of the two."""


def split_batch(leak: GradientLeak, network: Network, generator: torch.Generator) -> Batch:
    """Split the last layer's gradient into a problem for each example that is found.

    Args:
        leak: of one step on a batch; its size may be unknown.
        network: a view of the leak's model.
        generator: draws the units of the last linear programs.

    Raises:
        NotApplicable: the features aren't sparse and non-negative, or the gradient doesn't hold a
            batch's rays (see `find_subspace`).
    """
    space = find_subspace(leak, network)
    if is_of_another_loss(space.source.gradient):
        raise NotApplicable(OTHER_LOSS)
    require_sparse(network.probed_features, "the last layer")
    examples = find_examples(space, leak, generator)
    if len(examples) != space.batch_size:
        # Missing some, or with some that are false: then only what a label explains counts.
        examples = tuple(e for e in examples if e.explanation is not None)
    if len(examples) > space.batch_size:
        examples = ()  # of more than there can be, nothing says which are false
    factor = gradient_factor(space, examples)
    parts = rank_one_parts(space, examples, factor or 1.0, network) if examples else []
    problems = [_with_precision(*pair, factor) for pair in zip(examples, parts, strict=True)]
    return Batch(space, leak.batch_size or space.batch_size, examples, tuple(problems), factor)


def find_examples(
    space: Subspace, leak: GradientLeak, generator: torch.Generator
) -> tuple[Example, ...]:
    """Alternate between proposing, sharpening and accepting, and peel off what is accepted."""
    examples: tuple[Example, ...] = ()
    while len(examples) < space.batch_size:
        explained = [e.explanation.mixture for e in examples if e.explanation is not None]
        unexplained = [e.ray for e in examples if e.explanation is None]
        rest = peel(space, np.array(explained))
        refused: list[Ray] = []
        for solutions in propose(space, rest, unexplained, generator):
            candidates = (sharpen(space, rest, solution) for solution in solutions)
            fresh = accept(space, examples, candidates, refused, leak.told)
            if fresh:
                examples = certify(space, (*examples, *fresh), leak.told)
                break
        else:
            break
    return examples


def require_sparse(inputs: torch.Tensor, layer: str) -> None:
    """Refuse inputs of a layer that can't be told by their zeros.

    Args:
        inputs: on random images.
        layer: in words.

    Raises:
        NotApplicable: they take both signs, or random images have hardly a zero among theirs.
    """
    if not (inputs >= 0).all():
        raise NotApplicable(
            f"{layer}'s inputs take both signs; examples of a batch are told apart by features "
            "that are never negative, as after a ReLU"
        )
    zeros = float((inputs == 0).sum(dim=1).double().mean())
    if zeros < 1:
        raise NotApplicable(
            f"{layer}'s inputs are dense, as after pooling: none is zero, and examples of a batch "
            "are told apart by the zeros of their features"
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch's examples as far as they are found, each with its rank-one problem.

    Args:
        space: of the gradient.
        size: B.
        examples: those found.
        problems: one for each of them.
        factor: on the gradient, if the examples agree on one.
    """

    space: Subspace
    size: int
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]
    factor: float | None

    def answer(self, solved: Sequence[LabelRecovery]) -> LabelRecovery:
        """Put the answers to the problems together, the recovered ones first."""
        pairs = zip(self.examples, solved, strict=True)
        rows = [_confirmed(example, one.examples[0]) for example, one in pairs]
        rows.sort(key=lambda row: row.status is not Status.RECOVERED)
        missing = ExampleLabel(Status.NOT_CONVERGED, MISSING)
        rows += [missing] * (self.size - len(rows))
        return LabelRecovery.of(rows, gradient_scale=self.factor)


def _with_precision(example: Example, part: Problem, factor: float | None) -> Problem:
    """Return a problem, with labels of single precision where the gradient shows them.

    In a network of double precision it does: such a label sums to 1 + 1e-8, and so the ray's own
    dual shows another factor on the gradient.
    """
    found = example.explanation
    if found is not None and factor and abs(found.factor / factor - 1) > FINE_LABEL:
        return with_single_precision_labels(part)
    return part


def _confirmed(example: Example, one: ExampleLabel) -> ExampleLabel:
    """Return the answer to one example's scalar problem, as far as its ray alone confirms it."""
    found = example.explanation
    certificate = None if found is None else known(1 / max(found.residual, OWN_EPS))
    one = dataclasses.replace(one, label_std=None, candidates=None, certificate=certificate)
    if one.status is Status.RECOVERED and not _agree(found, one.label):
        return without_claim(one, DISAGREEMENT)
    return one


def _agree(explanation: Explanation | None, label: torch.Tensor | None) -> bool:
    """Say whether the label that explains the ray alone is that from all rays together."""
    if explanation is None or label is None:
        return False
    return bool(np.abs(explanation.label - label.numpy()).max() <= AGREED)
