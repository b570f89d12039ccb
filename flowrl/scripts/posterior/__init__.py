"""The posterior of a numpyro model by particles, beside NUTS."""

import importlib.util
from typing import Any

from flowrl import _distribution
from flowrl.scripts.posterior._options import Config as Config, check

# What a run imports beyond the console command itself; numpyro is imported nowhere before.
_NEEDED = ("numpyro", "sklearn", "matplotlib", "rich")


def main(config: Config) -> list[dict[str, Any]]:
    """Sample the posterior, measure, and return the rows of results.csv."""
    check(config)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{missing[0]} is missing: {_distribution.install('bayes,examples')}")
    from flowrl.scripts.posterior import _program

    return _program.run(config)
