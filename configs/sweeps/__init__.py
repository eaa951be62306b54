"""One grid for each table or figure of the supplement: `get_grid(dataset)`."""
