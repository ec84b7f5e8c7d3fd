"""Conformance checks: one line of a plug-in's tests says whether it keeps to the rules.

    from fl_sim.testing import check_label_attack

    def test_my_attack():
        check_label_attack("my_plugin:MyAttack")

Each check takes a registered name, `module:attr` or the object itself, and the plug-in's options as
keyword arguments. It builds its own small cases from fixed seeds, leaves the global generators as
they were, and raises `ConformanceError`: one sentence that begins with the plug-in and the rule.
`fl_sim.testing.rules.Rule` lists the rules; our own attacks, defenses, models and data sets keep to
them too. They catch mistakes, not malice: no check sees what a plug-in does on other inputs.

For a plug-in's own tests, `leak_of` makes what a server sees of a step, `draw_label` an augmented
label, `build_seeded` a network; `check_no_claim` says that an answer claims nothing, and why.
"""

from __future__ import annotations

from fl_sim.testing.answer import check_no_claim
from fl_sim.testing.attack import check_image_attack, check_label_attack
from fl_sim.testing.defense import check_defense
from fl_sim.testing.leaks import build_seeded, draw_label, facts_of, gradients_of, leak_of
from fl_sim.testing.parts import check_dataset, check_model
from fl_sim.testing.rules import ConformanceError

__all__ = [
    "ConformanceError",
    "build_seeded",
    "check_dataset",
    "check_defense",
    "check_image_attack",
    "check_label_attack",
    "check_model",
    "check_no_claim",
    "draw_label",
    "facts_of",
    "gradients_of",
    "leak_of",
]
