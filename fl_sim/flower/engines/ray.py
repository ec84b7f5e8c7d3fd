"""Run a scenario with `flwr run`, on Flower's simulation runtime: every client in a Ray actor.

The same ClientApp and ServerApp as in process, as a Flower app in a temporary folder, with a
SuperLink of its own. Nothing that this starts outlives the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import psutil

from fl_sim import __version__
from fl_sim.errors import EngineError, UserError
from fl_sim.federation import Federation
from fl_sim.flower.engines import OnProgress, Outcome
from fl_sim.flower.engines.processes import is_alive, marked_processes, stopped_at_exit
from fl_sim.flower.provenance import PACKAGES, package_folder
from fl_sim.flower.server import Server
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

PORT_VARIABLE = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
BUNDLED = {".py", ".toml", ".json", ".md"}  # of what Flower allows in an app
POLL_SECONDS = 0.5
LAST_WORDS_SECONDS = 5.0  # for the log's last lines to arrive
# Unix sockets' paths end at 107 bytes, of which Ray takes 70 below its folder.
LONGEST_RAY_FOLDER = 37

_PYPROJECT = """\
[project]
name = "fl-sim"
version = "{version}"
description = "One run of fl-sim"
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.41,<1.43"]

[tool.flwr.app]
publisher = "fl-sim"

[tool.flwr.app.components]
serverapp = "fl_sim.flower.server:app"
clientapp = "fl_sim.flower.engines.ray_client:app"

[tool.flwr.app.config]
resume = true
{config}
"""


def run_on_ray(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Run a scenario with Flower's processes; an `Engine`, whose server writes to this disk.

    Args:
        scenario: what to run.
        out: a folder that is new or empty, or holds this run when `resume` is set.
        resume: go on after the last committed round.
        on_progress: called with (server round, clients that answered, clients in the round), once
            when a round starts and once when it is committed.

    Raises:
        UserError: Ray isn't installed, the port is in use, the scenario can't be run, the folder
            holds something else, or no temporary folder can be written.
        EngineError: Flower's processes ended before the last round; what is committed stays.
    """
    if find_spec("ray") is None:
        raise UserError("engine 'ray' needs Ray, which isn't installed: pip install ray")
    server = Server(scenario, RunFolder(out))  # finds mistakes before anything is started
    port = _free_port()
    with _app_folder() as temporary:
        config = {
            "scenario": scenario.to_json(),
            "out": str(out.absolute()),
            "client-state": str(RunFolder(out).client_state),
        }
        _write_app(temporary / "app", config)
        with RunFolder.open(out, scenario, resume=resume) as folder:
            is_done = server.is_done
        if not is_done:
            log = temporary / "log"
            with stopped_at_exit(temporary, _environment(temporary, port)) as start:
                # The working folder is empty: Ray's workers import from there before the app.
                flwr = start(_command(scenario, temporary / "app"), log=log)
                _follow(flwr, temporary, _Progress(server, on_progress))
                if not server.is_done:
                    raise _failure(log.read_text(errors="replace"), folder)
    return Outcome.of(folder)


def _free_port() -> int:
    """Return the port that the user chose for Flower's SuperLink, or any free one."""
    chosen = os.environ.get(PORT_VARIABLE, "0")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(chosen)))
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"{PORT_VARIABLE} must be a free port of this machine, found {chosen}: {error}"
            ) from error
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _app_folder() -> Iterator[Path]:
    """Make a temporary folder; remove it if it can't be filled."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="fl-sim-"))
        for name in ("app", "flwr"):
            (folder / name).mkdir()
    except OSError as error:
        raise UserError(
            f"engine 'ray' needs a temporary folder that can be written: {error}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_app(folder: Path, config: Mapping[str, str]) -> None:
    """Copy our packages' sources, and describe them as a Flower app.

    Raises:
        UserError: the folder can't be written.
    """
    # A JSON string is one of TOML's, too.
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
    try:
        for source in map(package_folder, (*PACKAGES, "scenarios")):
            for path in source.rglob("*"):
                if path.suffix in BUNDLED and path.is_file():
                    copy = folder / path.relative_to(source.parent)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
        text = _PYPROJECT.format(version=__version__, config=lines)
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the Flower app can't be written to {folder}: {error}") from error


def _environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of Flower's and Ray's processes."""
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder / "flwr"),
        PORT_VARIABLE: str(port),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would hide the GPUs from clients that don't reserve one.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        # The SuperLink finds Flower's programs here,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        # and a scenario's `module:attr` is found where this process would find it.
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
    }
    if len(str(folder)) <= LONGEST_RAY_FOLDER:
        environment["RAY_TMPDIR"] = str(folder)
    return environment


def _command(scenario: Scenario, app: Path) -> list[str]:
    clients = scenario.data.clients
    federation = f"num-supernodes={clients} client-resources-num-cpus=1"
    if "RAY_ADDRESS" not in os.environ:  # a cluster has the processors that it has
        in_a_round = len(Federation.of(scenario).sampled_clients(1))
        federation += f" init-args-num-cpus={min(os.cpu_count() or 1, in_a_round)}"
    flwr = str(Path(sysconfig.get_path("scripts")) / "flwr")
    return [flwr, "run", str(app), "--stream", "--federation-config", federation]


class _Progress:
    """Tells the rounds that are committed, each once."""

    def __init__(self, server: Server, tell: OnProgress | None) -> None:
        self._sampled = server.federation.sampled_clients
        self._rounds = server.rounds
        self._folder = server.folder
        self._tell = tell
        self._told = self._folder.last_round()

    def update(self) -> None:
        """Read the run folder, and tell what is new."""
        last = self._folder.last_round()
        if self._tell is None or last is None or last == self._told:
            return
        for server_round in range((self._told or 0) + 1, last + 1):
            clients = len(self._sampled(server_round))
            self._tell(server_round, clients, clients)
        if last < self._rounds:
            self._tell(last + 1, 0, len(self._sampled(last + 1)))
        self._told = last


def _follow(flwr: subprocess.Popen[bytes], folder: Path, progress: _Progress) -> None:
    """Wait for the end of the run, or of the process that runs the ServerApp.

    Flower itself notices only after a minute that this process was killed.
    """
    server = None
    while flwr.poll() is None if server is None else is_alive(server):
        progress.update()
        server = server or next(filter(_runs_server, marked_processes(folder)), None)
        time.sleep(POLL_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        flwr.wait(LAST_WORDS_SECONDS)
    progress.update()


def _runs_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(Path(word).name == "flwr-simulation" for word in process.cmdline()[:2])
    return False


def _failure(log: str, folder: RunFolder) -> Exception:
    """Return what the log says: the user's mistake, or why Flower ended."""
    mistakes = re.findall(r"^(?:\w+\.)*UserError: (.+)$", log, flags=re.MULTILINE)
    if mistakes:
        return UserError(mistakes[-1].strip())
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .+$", log, flags=re.MULTILINE)
    reason = errors[-1].strip() if errors else "its server process was killed"
    last = folder.last_round()
    where = "before the first round" if not last else f"after round {last}"
    return EngineError(f"Flower's simulation ended {where}: {reason}")
