"""One grid for each table or figure of the supplement: `get_grid(argument)`, see `config.read_sweep`."""
