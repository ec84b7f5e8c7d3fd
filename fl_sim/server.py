"""The server: a Flower `ServerApp` that trains a model and audits every update."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch.nn.functional import cross_entropy

from attacks import Knowledge, Normalization
from defenses import Chain
from fl_sim.audit import AttackPlan, Finding, ReplayJudge
from fl_sim.client import resolve_device, to_arrays
from fl_sim.errors import UserError
from fl_sim.federation import Federation
from fl_sim.privacy import epsilon
from fl_sim.provenance import code_hash
from fl_sim.records import LeakageRecord
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Attack, Scenario
from fl_sim.scenario_source import configured_scenario
from fl_sim.scoring import Baseline
from fl_sim.strategy import LeakageAudit, ReplyGuard, build_strategy
from fl_sim.strategy.state import pack_state, restore_state
from fl_sim.threads import one_thread
from fl_sim.wire import LocalTraining, load_tensors, wire_tensors

app = ServerApp()
QUERY_TIMEOUT_SECONDS = 120.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run configuration holds."""
    scenario = configured_scenario(context.run_config)
    out = Path(str(context.run_config["out"]) or f"runs/{scenario.name}-run-{context.run_id}")
    server = Server(scenario, RunFolder(out))  # finds mistakes before the folder is touched
    resume = bool(context.run_config["resume"])
    with RunFolder.open(out, scenario, resume=resume), one_thread():
        server.run(grid)


class Server:
    """One run: the strategy and its wrappers, the global model's evaluation, and the commits."""

    def __init__(self, scenario: Scenario, folder: RunFolder) -> None:
        self.scenario = scenario
        self.folder = folder
        self.federation = Federation.of(scenario)
        self.federation.build_model()  # raises now what is wrong with it
        resolve_device(scenario.device)  # likewise
        self.plans = [_plan(attack, self.federation.defenses) for attack in scenario.attack]
        self.strategy = build_strategy(scenario.server.strategy, scenario.server.options)
        self._findings: list[Finding] = []
        self._quarantined: list[LeakageRecord] = []
        self._guard: ReplyGuard | None = None
        self._committed = -1
        self._started = time.perf_counter()

    def run(self, grid: Grid) -> None:
        """Train from the start, or from where a killed run was."""
        scenario = self.scenario
        checkpoint = self.folder.restore()
        offset = 0
        arrays = to_arrays(wire_tensors(self.federation.build_model(), scenario.client.mode))
        if checkpoint is not None:
            offset = self._committed = checkpoint.server_round
            arrays = ArrayRecord({k: Array(v) for k, v in checkpoint.weights.items()})
            if offset < scenario.rounds:
                restore_state(self.strategy, checkpoint.state)
        if offset >= scenario.rounds:
            return
        clients = _identify(grid, scenario.data.clients)
        self._guard = ReplyGuard(
            self._audited(clients) if self.plans else self.strategy,
            clients=clients,
            sample=self.federation.sampled_clients,
            on_quarantine=self._quarantine,
            round_offset=offset,
            accepted_before=self.folder.accepted_replies(),
        )
        self._guard.start(
            grid,
            arrays,
            num_rounds=scenario.rounds - offset,
            evaluate_fn=partial(self._finish_round, offset),
        )

    def _audited(self, clients: Mapping[int, int]) -> Strategy:
        """Put the audit around the strategy."""
        return LeakageAudit(
            self.strategy,
            model=self.federation.build_model(),
            attacks=self.plans,
            training=_training(self.scenario),
            input_shape=self.federation.dataset.input_shape,
            normalization=Normalization.of_range(0, 1),  # models normalise themselves
            log=self._remember,
            clients=clients,
            defenses=self._defenses(),
            judge=ReplayJudge(self.federation, Baseline.of(self.federation)),
            seed=self.scenario.seed,
        )

    def _finish_round(self, offset: int, round_since: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model, write the round's records and commit it."""
        server_round = offset + round_since
        accuracy, loss = self._evaluate(arrays)
        if server_round > self._committed:
            self._write_findings(server_round)
            line = {
                "round": server_round,
                "accuracy": accuracy,
                "loss": loss if np.isfinite(loss) else None,
                "epsilon": self._epsilon(server_round),
                "replies": 0 if self._guard is None else self._guard.accepted,
                "quarantined": len(self._quarantined),
                "seconds": time.perf_counter() - self._started,
            }
            weights = {name: array.numpy() for name, array in arrays.items()}
            self.folder.commit(line, weights, pack_state(self.strategy))
        self._findings, self._quarantined = [], []
        self._started = time.perf_counter()
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    def _write_findings(self, server_round: int) -> None:
        """Write the round's records, ordered by (client, attack, example), and its images."""
        records = [finding.record for finding in self._findings] + self._quarantined
        records.sort(key=lambda r: (r.client or 0, r.attack or 0, r.example or 0))
        if records:
            self.folder.log([record.to_json() for record in records])
        shown = [finding for finding in self._findings if finding.tensors]
        for finding in _from_all_clients(shown)[: self.scenario.images]:
            r = finding.record
            name = f"r{server_round:04d}-c{r.client:04d}-a{r.attack}-e{r.example or 0}.npz"
            arrays: dict[str, Any] = {k: t.float().numpy() for k, t in finding.tensors.items()}
            np.savez(self.folder.images / name, **arrays)

    def _remember(self, server_round: int, findings: list[Finding]) -> None:
        self._findings = findings

    def _quarantine(self, server_round: int, client: int, reason: str) -> None:
        self._quarantined.append(
            LeakageRecord(
                round=server_round,
                client=client,
                defenses=self._defenses(),
                label_reason=f"reply left out: {reason}",
            )
        )

    def _evaluate(self, arrays: ArrayRecord) -> tuple[float, float]:
        """Return accuracy and mean loss on the server's test images."""
        dataset = self.federation.dataset
        count = self.federation.test_examples
        device = resolve_device(self.scenario.device)
        model = self.federation.build_model()
        load_tensors(model, arrays.to_torch_state_dict())
        model.to(device).eval()
        hits, total = 0, 0.0
        with torch.no_grad():
            for start in range(0, count, 500):
                part = slice(start, min(start + 500, count))
                labels = dataset.test_labels[part].to(device)
                logits = model(dataset.test_images[part].to(device))
                hits += int((logits.argmax(dim=1) == labels).sum())
                total += float(cross_entropy(logits, labels, reduction="sum"))
        return hits / count, total / count

    def _epsilon(self, server_round: int) -> float | None:
        """Return the ε of the client that took part most often; None without a guarantee."""
        multipliers = [
            float(stage.parameters["noise_multiplier"])
            for stage in self.scenario.defense
            if stage.name == "dp-noise"
        ]
        if not multipliers:
            return None
        taken = np.zeros(self.scenario.data.clients, dtype=int)
        for past in range(1, server_round + 1):
            taken[self.federation.sampled_clients(past)] += 1
        return epsilon(max(multipliers), int(taken.max()), delta=self.scenario.privacy.delta)

    def _defenses(self) -> str:
        return "+".join(stage.name for stage in self.scenario.defense) or "none"


def _from_all_clients(findings: list[Finding]) -> list[Finding]:
    """Order findings so that the first few come from as many clients as there are."""
    places: Counter[tuple[int | None, int | None]] = Counter()
    turns = []
    for finding in findings:
        whose = finding.record.client, finding.record.attack
        turns.append(places[whose])
        places[whose] += 1
    order = sorted(range(len(findings)), key=turns.__getitem__)  # it is stable
    return [findings[index] for index in order]


def _plan(attack: Attack, defenses: Chain) -> AttackPlan:
    """Build an attack of a scenario."""
    aware = attack.attacker == "aware"
    try:
        return AttackPlan.by_name(
            attack.label,
            attack.image,
            label_options=attack.label_options,
            image_options=attack.image_options,
            knowledge=Knowledge(**defenses.public()) if aware else Knowledge(),
            attacker=attack.attacker,
            covers=attack.covers,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _training(scenario: Scenario) -> LocalTraining:
    client = scenario.client
    return LocalTraining(
        lr=client.lr,
        batch_size=client.batch_size,
        local_steps=client.local_steps,
        optimizer=client.optimizer,
        momentum=client.momentum,
        nesterov=client.nesterov,
        weight_decay=client.weight_decay,
        mode=client.mode,
    )


def _identify(grid: Grid, expected: int) -> Mapping[int, int]:
    """Ask every node which client it is; wait until all are there.

    Raises:
        UserError: not every client answers in time, or one runs other code than this server.
    """
    deadline = time.monotonic() + QUERY_TIMEOUT_SECONDS
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    queries = [
        Message(RecordDict({"query": ConfigRecord({})}), dst_node_id=node, message_type="query")
        for node in nodes
    ]
    clients = {}
    for reply in grid.send_and_receive(queries, timeout=QUERY_TIMEOUT_SECONDS):
        if not reply.has_error():
            identity = reply.content.config_records["identity"]
            clients[reply.metadata.src_node_id] = client = int(str(identity["partition-id"]))
            if identity["code"] != code_hash():
                raise UserError(
                    f"client {client} must run the server's code, {code_hash()}, found "
                    f"{identity['code']!s}"
                )
    if sorted(clients.values()) != list(range(expected)):
        raise UserError(
            f"data.clients is {expected}, but {len(clients)} of {len(nodes)} nodes answered as "
            f"clients {sorted(clients.values())}"
        )
    return clients
