"""The server: averages what the clients send, and audits it."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import MEAN, SHAPE, STD, build_model
from fl_sim import LeakageAudit, LocalTraining, Normalization, ReplyGuard

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = build_model()
    strategy = FedAvg()
    strategy = LeakageAudit(
        strategy,
        model=model,
        attacks=["soft-label", "label-mass", "llg"],
        training=LocalTraining(
            lr=config["lr"],
            optimizer=config["optimizer"],
            batch_size=config["batch-size"],
            mode="train",
        ),
        input_shape=SHAPE,
        normalization=Normalization(MEAN, STD),
        out=config["audit-out"],
    )
    strategy = ReplyGuard(strategy)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=config["num-server-rounds"])
