"""What noise guarantees a client against the server: claims of defenses, composed to (ε, δ).

The adversary is the server, which reads every update of a client and knows who takes part. So a
claim holds for one client at a time (local differential privacy), and adds up over the rounds in
which that client took part, also where later updates depend on earlier ones.
"""

from fl_sim.privacy.accountant import epsilon, spent_epsilon
from fl_sim.privacy.mechanism_audit import MechanismAudit, audit_mechanism

__all__ = ["MechanismAudit", "audit_mechanism", "epsilon", "spent_epsilon"]
