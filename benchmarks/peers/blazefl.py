"""The round in BlazeFL: its own FedAvg server and trainers, clients side by side in processes or in threads.

https://github.com/kitsuyaazuma/blazefl. `--mode=processes` is `FedAvgProcessPoolClientTrainer` with parameters in shared
memory, `--mode=threads` is `FedAvgThreadPoolClientTrainer`. The shares of the clients are files, as its examples have them.
"""

import argparse
import tempfile
from enum import StrEnum
from pathlib import Path

import torch
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgProcessPoolClientTrainer, FedAvgThreadPoolClientTrainer
from blazefl.core import IPCMode, ModelSelector, PartitionedDataset
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.peers import given, network


class Name(StrEnum):
    """Of the models."""

    CNN = "cnn"


class Models(ModelSelector[Name]):
    """The one model."""

    def select_model(self, model_name: Name) -> torch.nn.Module:
        return network.CNN()


class Shares(PartitionedDataset):
    """Examples of each client in a file of its own, read when it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_dataset(self, type_: str, cid: int | None) -> Dataset:
        return TensorDataset(*torch.load(self.folder / f"{cid}.pt"))

    def set_dataset(self, type_: str, cid: int | None, dataset: Dataset) -> None:
        torch.save(dataset.tensors, self.folder / f"{cid}.pt")

    def get_dataloader(
        self, type_: str, cid: int | None, batch_size: int | None = None, generator: torch.Generator | None = None
    ) -> DataLoader:
        return DataLoader(self.get_dataset(type_, cid), batch_size=batch_size, shuffle=True, generator=generator)


def main() -> None:
    """Prints the line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=("processes", "threads"), required=True)
    mode, rest = parser.parse_known_args()
    work = given.parse(rest)
    data = given.examples(work)
    with tempfile.TemporaryDirectory() as folder:
        shares = Shares(Path(folder))
        for cid in range(work.clients):
            own = TensorDataset(torch.from_numpy(data.inputs[cid]).clone(), torch.from_numpy(data.labels[cid]).clone())
            shares.set_dataset("train", cid, own)
        common = {
            "model_selector": Models(),
            "model_name": Name.CNN,
            "dataset": shares,
            "device": "cpu",
            "num_clients": work.clients,
            "batch_size": work.batch,
            "seed": 0,
        }
        server = FedAvgBaseServerHandler(**common, global_round=given.WARM_UP + work.rounds, sample_ratio=1.0)
        server.model.load_state_dict(network.first().state_dict())
        training = {**common, "epochs": 1, "lr": given.LEARNING_RATE, "num_parallels": work.workers}
        if mode.mode == "threads":
            trainer = FedAvgThreadPoolClientTrainer(**training)
        else:
            files = {"share_dir": Path(folder) / "share", "state_dir": Path(folder) / "state"}
            trainer = FedAvgProcessPoolClientTrainer(**training, **files, ipc_mode=IPCMode.SHARED_MEMORY)
        before = network.loss(server.model, *data.evaluated)
        clock = given.Clock()
        clock.note()
        for _ in range(given.WARM_UP + work.rounds):
            sampled = server.sample_clients()
            trainer.local_process(server.downlink_package(), sampled)
            for package in trainer.uplink_package():
                server.load(package)
            clock.note()
        after = network.loss(server.model, *data.evaluated)
    given.report(work, clock, before, after, ["blazefl", "torch"])


if __name__ == "__main__":
    main()
