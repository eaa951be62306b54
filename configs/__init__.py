"""One config for each dataset: `get_config(argument)`."""
