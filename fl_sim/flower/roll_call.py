"""Before training: which node is which client."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_sim.errors import UserError
from fl_sim.flower.provenance import code_hash

QUERY_TIMEOUT_SECONDS = 120.0


def identify_clients(grid: Grid, expected: int, committed: int) -> Mapping[int, int]:
    """Ask every node which client it is; wait until all are there.

    They are told the last committed round, so that clients forget what later ones left.

    Args:
        grid: to all nodes.
        expected: how many clients there are.
        committed: the last committed round, -1 for none.

    Returns:
        Node id -> client number.

    Raises:
        UserError: not every client answers in time, or one runs other code than this server.
    """
    deadline = time.monotonic() + QUERY_TIMEOUT_SECONDS
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= expected or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    asked = ConfigRecord({"committed": committed})
    queries = [
        Message(RecordDict({"query": asked}), dst_node_id=node, message_type="query")
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
