"""What `import fl_sim` offers, and what it loads."""

from __future__ import annotations

import subprocess
import sys

import fl_sim


def test_what_is_public_can_be_listed_and_read() -> None:
    listed = [name for name in dir(fl_sim) if not name.startswith("__")]
    assert listed == sorted(fl_sim.__all__)
    assert {"LeakageAudit", "LocalGrid", "Judge", "Baseline", "Truth"} <= set(listed)
    assert all(getattr(fl_sim, name) is not None for name in listed)


def test_listing_it_loads_nothing() -> None:
    code = (
        "import sys, fl_sim; dir(fl_sim)\n"
        "sys.exit(' '.join({'torch', 'flwr'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
