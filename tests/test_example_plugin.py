"""The example plug-in is what its README shows, and the README's steps work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
README = (EXAMPLE / "README.md").read_text("utf-8")
BLOCK = re.compile(r"(?:`([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def environment(site: Path) -> dict[str, str]:
    """Let pip install into a folder of the test's own, offline, with the setuptools at hand."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PIP_"))}
    return inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(site),
        "PIP_TARGET": str(site),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the other way round: 0 switches it off
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_readme_shows_the_files() -> None:
    shown = {name: text for name, _, text in BLOCK.findall(README) if name}
    files = {path.name: path.read_text("utf-8") for path in EXAMPLE.iterdir() if path.is_file()}
    assert shown == {name: text for name, text in files.items() if name != "README.md"}


@pytest.mark.e2e
def test_readme_leads_from_an_empty_folder_to_the_leakage_log(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    output = ""
    for name, language, text in BLOCK.findall(README):
        if language != "bash":
            (folder / name).write_text(text, "utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environment(tmp_path / "site"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, text + done.stdout + done.stderr
        output += done.stdout
    assert re.search(r"^ row-sum +row_sum:RowSum", output, flags=re.MULTILINE)
    assert "1 passed" in output
    log = (folder / "runs" / "row-sum" / "leakage.jsonl").read_text("utf-8")
    records = [json.loads(line) for line in log.splitlines()]
    assert {record["label_attack"] for record in records} == {"row-sum"}
    assert len(records) == 20  # 10 clients, 2 rounds, one example each
    # The sign of the row sum is almost never wrong for mildly smoothed labels.
    assert sum(record["label_top1"] for record in records) >= 18
