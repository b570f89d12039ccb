"""Sample the posterior of a numpyro model by particles and by NUTS; write results.csv, moments.csv, posterior.png."""

from typing import Any

from flowrl.scripts.posterior._options import Config as Config, check as check


def main(config: Config) -> list[dict[str, Any]]:
    """Sample the posterior, measure, and return the rows of results.csv."""
    check(config)
    from flowrl.scripts.posterior import _program  # here, so that options are read without numpyro

    return _program.run(config)
