"""Observations on the scale that networks learn from."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl.rl.data.schema import OBSERVATION_PROTOCOLS


class Standardizer(eqx.Module):
    """Observations brought to mean 0 and standard deviation 1, with constants of the training data.

    Attributes:
        mean: (obs,).
        std: (obs,), at least 1e-3.
    """

    mean: Float[Array, " obs"]
    std: Float[Array, " obs"]

    @classmethod
    def fit(cls, observations: Float[np.ndarray | Array, "rows obs"], protocol: str = "standard") -> "Standardizer":
        """Measure the constants.

        Args:
            observations: (rows, obs).
            protocol: one of `flowrl.rl.data.OBSERVATION_PROTOCOLS`; "none" leaves observations as they are.

        Raises:
            TypeError: `observations` is no matrix of numbers.
            ValueError: the protocol is unknown.
        """
        if not isinstance(protocol, str) or protocol not in OBSERVATION_PROTOCOLS:
            known = ", ".join(OBSERVATION_PROTOCOLS)
            raise ValueError(f"unknown observation protocol {protocol!r}, expected one of {known}.")
        try:
            given = np.asarray(observations)
        except (TypeError, ValueError) as error:
            raise TypeError(f"observations must be numbers (rows, obs), got {observations!r}.") from error
        if given.dtype.kind not in "biuf" or given.ndim != 2 or not given.shape[0]:
            what = f"{type(observations).__name__} of shape {given.shape} and dtype {given.dtype}"
            raise TypeError(f"observations must be numbers (rows, obs), got {what}.")
        if protocol == "none":
            width = given.shape[1]
            return cls(jnp.zeros(width, jnp.float32), jnp.ones(width, jnp.float32))
        rows = given.astype(np.float64)
        mean, std = rows.mean(axis=0), rows.std(axis=0)
        return cls(jnp.asarray(mean, jnp.float32), jnp.asarray(np.maximum(std, 1e-3), jnp.float32))

    def __call__(self, observations: Float[Array, "*batch obs"]) -> Float[Array, "*batch obs"]:
        """Return observations in standard deviations from the mean.

        Args:
            observations: raw observations.
        """
        return (observations - jnp.broadcast_to(self.mean, observations.shape)) / jnp.broadcast_to(
            self.std, observations.shape
        )
