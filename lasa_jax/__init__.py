"""Byzantine-robust federated learning, simulated whole on the accelerator: LASA and what it is compared with."""
