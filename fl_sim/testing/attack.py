"""Conformance of attacks: how they are asked, and whether they answer alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attacks import (
    IMAGE_ATTACKS,
    LABEL_ATTACKS,
    GradientLeak,
    ImageAttack,
    LabelAttack,
    LabelRecovery,
)
from fl_sim.testing.answer import check_label_answer, check_reconstruction
from fl_sim.testing.cases import (
    Case,
    hard_cases,
    no_recovery,
    ordinary_cases,
    perfect_recovery,
    through_bytes,
    with_remains,
)
from fl_sim.testing.rules import (
    ConformanceError,
    Rule,
    Subject,
    build,
    difference,
    first_line,
    generator,
    resolve,
)


def check_label_attack(
    attack: str | type | LabelAttack | Callable[..., Any], **options: Any
) -> None:
    """Check that a label attack keeps to the rules.

    Args:
        attack: a name in `attacks.LABEL_ATTACKS`, `module:attr`, a class or factory, or an attack.
        options: the attack's parameters, unless it is built already.

    Raises:
        ConformanceError: it breaks a rule; the message is one sentence that names it.
    """
    subject, found = resolve(LABEL_ATTACKS, attack)
    built = build(subject, found, options)
    subject.require_frozen(built)
    exam = _Exam(subject, built, check_label_answer)
    for case in ordinary_cases():
        exam.ordinary(case, None)
    for case in hard_cases():
        exam.hard(case, None)


def check_image_attack(
    attack: str | type | ImageAttack | Callable[..., Any], **options: Any
) -> None:
    """Check that an image attack keeps to the rules.

    It is called some 40 times: let one that optimises do so for few iterations.

    Args:
        attack: a name in `attacks.IMAGE_ATTACKS`, `module:attr`, a class or factory, or an attack.
        options: the attack's parameters, unless it is built already.

    Raises:
        ConformanceError: it breaks a rule; the message is one sentence that names it.
    """
    subject, found = resolve(IMAGE_ATTACKS, attack)
    built = build(subject, found, options)
    subject.require_frozen(built)
    exam = _Exam(subject, built, check_reconstruction)
    for case in ordinary_cases():
        exam.ordinary(case, perfect_recovery(case))
        exam.hard(case, no_recovery(case))
    for case in hard_cases():
        exam.hard(case, perfect_recovery(case))


@dataclass(frozen=True)
class _Exam:
    """An attack, and what judges its answers."""

    subject: Subject
    attack: Any
    judge: Callable[[Subject, Case, Any], None]

    def ordinary(self, case: Case, labels: LabelRecovery | None) -> None:
        """Ask three times: with a step's remains, as from the wire, and with other global draws."""
        answer = self._try(case, with_remains(case), labels)
        blind = self._try(case, through_bytes(case), labels)
        self._require_both(case, answer, blind)
        self.judge(self.subject, case, blind)
        again = self._ask(case, through_bytes(case), labels, salt=1)
        differs = difference(blind, again)
        self.subject.require(
            not differs,
            Rule.SEEDED,
            f"on {case.name} its answer ({differs}) differs between two calls with one seed",
        )
        differs = difference(blind, answer)
        self.subject.require(
            not differs,
            Rule.BLIND,
            f"on {case.name} its answer ({differs}) changes with what a client's step leaves on "
            "the network",
        )

    def hard(self, case: Case, labels: LabelRecovery | None) -> None:
        """Ask once, where a `ValueError` is an answer too."""
        answer = self._try(case, case.leak, labels)
        if isinstance(answer, ValueError):
            return
        if isinstance(answer, Exception):
            message = f"on {case.name} it raised {first_line(answer)}"
            raise ConformanceError(self.subject.title, Rule.ROBUST, message) from answer
        self.judge(self.subject, case, answer)

    def _require_both(self, case: Case, answer: Any, blind: Any) -> None:
        """Raise unless both are answers, rather than what was raised instead."""
        if not isinstance(blind, Exception) and not isinstance(answer, Exception):
            return
        if not isinstance(blind, Exception):
            rule, found = (
                Rule.BLIND,
                "it trips over what a client's step leaves on the network, and",
            )
        elif not isinstance(answer, Exception):
            rule, found = Rule.BLIND, "it needs what a client's step leaves on the network, and"
        else:
            rule, found = Rule.ROBUST, "it"
        error = blind if isinstance(blind, Exception) else answer
        message = f"on {case.name} {found} raised {first_line(error)}"
        raise ConformanceError(self.subject.title, rule, message) from error

    def _try(self, case: Case, leak: GradientLeak, labels: LabelRecovery | None) -> Any:
        """Return the answer, or what was raised instead."""
        try:
            return self._ask(case, leak, labels)
        except ConformanceError:
            raise
        except Exception as error:  # a third party's attack may raise anything
            return error

    def _ask(
        self, case: Case, leak: GradientLeak, labels: LabelRecovery | None, *, salt: int = 0
    ) -> Any:
        inputs: tuple[object, ...] = (leak,)
        watched = {"the model": leak.model, "the gradients": leak.gradients}
        watched["its own parameters"] = self.attack
        if labels is not None:
            inputs = (leak, labels)
            watched["the label recovery"] = labels
        with self.subject.watch(f"on {case.name}", watched, salt=salt):
            return self.attack(*inputs, generator=generator())
