"""The round in Flower's simulation: a `ClientApp` and a `ServerApp` with `FedAvg`, clients in workers of Ray.

https://flower.ai/docs/framework/how-to-run-simulations.html. A client gets one core (the default is two), so that as many
train side by side as there are cores. `run_simulation` is what its guide shows for a program; `flwr run` starts the same
simulation from a project's folder.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# Ray's workers are nice: beside other work they would wait for it, unlike the other simulators.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.peers import given, network


def client_app(work: given.Round) -> ClientApp:
    """What a client does with a message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        data = given.examples(work)  # read once in each worker
        model = network.CNN()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        network.train(model, torch.from_numpy(data.inputs[client]), torch.from_numpy(data.labels[client]), work.batch)
        metrics = MetricRecord({"num-examples": len(data.labels[client])})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main() -> None:
    """Prints the line of JSON."""
    work = given.parse()
    data = given.examples(work)
    rounds = given.WARM_UP + work.rounds
    clock, losses = given.Clock(), []
    app = ServerApp()

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Flower calls this before the first round and after each."""
        if server_round:
            clock.note()
        if server_round in (0, rounds):
            model = network.CNN()
            model.load_state_dict(arrays.to_torch_state_dict())
            losses.append(network.loss(model, *data.evaluated))
        if not server_round:
            clock.note()
        return MetricRecord({})

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=work.clients)
        start = ArrayRecord(network.first().state_dict())
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=after_round)

    run_simulation(
        server_app=app,
        client_app=client_app(work),
        num_supernodes=work.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    given.report(work, clock, losses[0], losses[-1], ["flwr", "ray", "torch"])


if __name__ == "__main__":
    main()
