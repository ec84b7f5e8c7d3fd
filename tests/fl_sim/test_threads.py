"""All that is computed in a run is on one thread, in libraries that are loaded on the way, too."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fl_sim.threads import one_thread


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread(), one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.e2e
def test_a_library_that_is_loaded_later_is_limited() -> None:
    program = (
        "from threadpoolctl import threadpool_info\n"
        "from fl_sim.threads import one_thread\n"
        "with one_thread():\n    before = len(threadpool_info())\n"
        "import scipy.linalg\n"
        "with one_thread():\n"
        "    found = threadpool_info()\n"
        "    assert {part['num_threads'] for part in found} == {1}, found\n"
        "    assert len(found) >= before\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
