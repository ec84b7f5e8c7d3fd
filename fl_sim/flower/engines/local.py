"""Run a scenario in this process, by a Flower grid that calls the ClientApp."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.errors import NothingAccepted
from fl_sim.federation import Federation
from fl_sim.flower import client, server
from fl_sim.flower.engines import OnProgress, Outcome
from fl_sim.flower.run import run
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

__all__ = ["LocalGrid", "run", "run_locally"]

logger = logging.getLogger(__name__)


def run_locally(
    scenario: Scenario,
    out: Path,
    *,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Run a scenario in this process; an `Engine`, which tells of every reply."""
    Federation.of(scenario)
    folder = RunFolder(out)
    config: UserConfig = {
        "scenario": scenario.to_json(),
        "out": str(out.absolute()),
        "resume": resume,
        "client-state": str(folder.client_state),
    }
    grid = LocalGrid(client.app, scenario.data.clients, config, on_progress)
    try:
        server.app(grid, Context(1, 0, {}, RecordDict(), dict(config)))
    except NothingAccepted as error:  # it knows the commonest reason
        outcome = Outcome(out, str(error))
    else:
        outcome = Outcome.of(folder)
    return outcome


class LocalGrid(Grid):
    """A Flower grid whose nodes are calls of a ClientApp in this process.

    It is the quick way to try an app: no SuperLink, no Ray, and a debugger reaches everything.
    Messages carry the same serialised arrays as over a network; a client that raises is an error
    reply. Node `i + 1` is client i, whose "partition-id" is i and "num-partitions" `clients`.

    Args:
        client_app: what every node runs.
        clients: how many nodes, at least 1.
        run_config: the run configuration that ClientApps read; None is an empty one.
        on_progress: called with (server round, replies so far, clients in the round).

    Raises:
        ValueError: there is no node.

    Example:
        >>> from flwr.app import MetricRecord
        >>> from flwr.serverapp import ServerApp
        >>> client_app, server_app, seen = ClientApp(), ServerApp(), []
        >>> @client_app.query()
        ... def tell(message: Message, context: Context) -> Message:
        ...     own = {"partition": context.node_config["partition-id"]}
        ...     return Message(RecordDict({"own": MetricRecord(own)}), reply_to=message)
        >>> @server_app.main()
        ... def main(grid: Grid, context: Context) -> None:
        ...     asked = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        ...     replies = grid.send_and_receive(asked)
        ...     seen.extend(reply.content["own"]["partition"] for reply in replies)
        >>> server_app(LocalGrid(client_app, clients=2), Context(1, 0, {}, RecordDict(), {}))
        >>> seen
        [0, 1]
    """

    def __init__(
        self,
        client_app: ClientApp,
        clients: int,
        run_config: UserConfig | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if clients < 1:
            raise ValueError(f"clients must be at least 1, found {clients}")
        self._client_app = client_app
        self._on_progress = on_progress
        self._run = Run.create_empty(1)
        self._replies: dict[str, Message] = {}
        self._contexts = {
            index + 1: Context(
                run_id=1,
                node_id=index + 1,
                node_config={"partition-id": index, "num-partitions": clients},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index in range(clients)
        }
        # What Flower sets for a task of its own; Message reads it.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have every addressee answer, one after the other, and return the messages' ids."""
        messages = list(messages)
        ids = []
        for done, message in enumerate(messages, start=1):
            ids.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._replies[ids[-1]] = self._answer(message)
            if self._on_progress is not None and message.metadata.message_type == "train":
                config = message.content.config_records["config"]
                self._on_progress(int(str(config["server-round"])), done, len(messages))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers to messages."""
        return [self._replies.pop(message_id) for message_id in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return all answers; calls in process can't time out."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        content = message.content
        try:
            message.content = _own_copy(content)
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower does: a client that raises is an error reply
            logger.warning("client %d raised", message.metadata.dst_node_id - 1, exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        finally:
            message.content = content


def _own_copy(content: RecordDict) -> RecordDict:
    """Copy the records, which strategies share among messages; the bytes in them can't change."""
    copied = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays = {k: Array(a.dtype, a.shape, a.stype, a.data) for k, a in record.items()}
            copied[name] = ArrayRecord(arrays)
        else:
            copied[name] = type(record)(dict(record))  # type: ignore[arg-type]
    return copied
