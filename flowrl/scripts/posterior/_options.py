"""What `flowrl posterior` can be told, and what is refused."""

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """What is sampled, by what, and what it is compared with."""

    model: Literal["logistic", "eight-schools", "eight-schools-centred", "baseball", "network"] = "logistic"
    """The model and its data; the last is a small Bayesian neural network."""
    flow: Literal["svgd", "preconditioned", "langevin", "aldi"] = "svgd"
    """The flow; `preconditioned` is SVGD in coordinates whitened by the particles' own covariance."""
    particles: int = 100
    """Number of particles. Langevin and ALDI want more: their error falls as one over the root of it."""
    start: Literal["prior", "zero"] = "prior"
    """Where particles start: draws from the prior, or numbers between -2 and 2 as numpyro's NUTS starts."""
    steps: int = 1000
    """Steps of the flow; each takes one gradient per particle."""
    step_size: float | None = None
    """Step size: Adagrad's rate for svgd, Euler's step for the others. None takes the flow's own default."""
    nuts_warmup: int = 500
    """Iterations in which each chain of NUTS adapts."""
    nuts_draws: int = 1000
    """Draws kept of the single chain that the particles are compared with."""
    reference_draws: int = 2500
    """Draws kept of each of the four chains that all are measured by."""
    seed: int = 0
    """Seed of the split into training and test data and of all randomness."""
    out: pathlib.Path = pathlib.Path("runs/posterior")
    """Folder for the files; made if missing."""


def check(config: Config) -> None:
    """Exit with a message if an option makes no sense."""
    least = {"particles": 2, "steps": 1, "nuts_warmup": 20, "nuts_draws": 20, "reference_draws": 20}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(config, name)}.")
    if config.step_size is not None and not 0 < config.step_size < float("inf"):
        raise SystemExit(f"--step-size must be a finite number above 0, got {config.step_size}.")
    if config.nuts_draws < config.particles:
        raise SystemExit(f"--nuts-draws must be at least --particles = {config.particles}, got {config.nuts_draws}.")
