"""The client: trains on its own digits."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app.task import build_model, load_data, test, train

app = ClientApp()


def prepare(message: Message, context: Context, **options):
    model = build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    place = context.node_config["partition-id"], context.node_config["num-partitions"]
    return model, load_data(*place, context.run_config["batch-size"], **options)


@app.train()
def fit(message: Message, context: Context) -> Message:
    model, loader = prepare(message, context)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[context.run_config["optimizer"]]
    optimizer = kind(model.parameters(), lr=context.run_config["lr"])
    steps, loss = train(model, loader, optimizer)
    metrics = {"train-loss": loss, "num-examples": len(loader.dataset), "num-steps": steps}
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, loader = prepare(message, context, test=True)
    metrics = {"accuracy": test(model, loader), "num-examples": len(loader.dataset)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
