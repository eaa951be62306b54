"""The same FedAvg round in other simulators, one file for each: see `python -m benchmarks.peers --help`."""
