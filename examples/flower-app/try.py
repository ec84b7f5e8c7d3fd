"""Run the app in this process, without a SuperLink: quick, and a debugger reaches everything."""

import tomllib
from pathlib import Path

from digits_app.client_app import app as client_app
from digits_app.server_app import app as server_app
from flwr.app import Context, RecordDict

from fl_sim import LocalGrid

if __name__ == "__main__":
    config = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    server_app(LocalGrid(client_app, 2, config), Context(1, 0, {}, RecordDict(), config))
