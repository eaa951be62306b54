"""Shakespeare at the paper's settings: next character, one client per role, LSTM, 100 per round, 1,000 rounds.

    python -m lasa_jax.main --config=configs/shakespeare.py --config.source=plays.txt.gz      # see docs/datasets.md
    python -m lasa_jax.main --config=configs/shakespeare.py --config.attack.name=lie          # then without the source

The paper's best test accuracy of LASA is 65.08 % without attack and 64.25 % under Lie (supplement, Table 1), with 715 roles.
Evaluated every 5 rounds. A step of 4 sequences takes 18 to 20 ms on a core with AVX-512, and a role has 14 steps on average.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """Takes no argument: clients are natural."""
    parse_argument(argument, {})
    return paper("shakespeare")
