"""The same FedAvg round in other simulators, see `python -m benchmarks.peers --help`. One file for each, and no code of theirs."""
