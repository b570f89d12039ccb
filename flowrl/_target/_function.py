"""What a target makes of the thing it is given: a function, a module, or a distribution with a method `log_prob`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl._custom_types import Particle
from flowrl._target._base import AbstractTarget


class LogProb(eqx.Module):
    """The `log_prob` of a distribution as a function whose arrays are leaves, so that new ones never recompile."""

    distribution: Any

    def __init__(self, distribution: Any):
        self.distribution = as_leaves(distribution)

    def __call__(self, *args: Any) -> Array:
        """Return log p(x) in the dtype of x; −∞ outside the distribution's `support`, if it has one."""
        with third_party():
            out = jnp.asarray(self.distribution.log_prob(*args))
            # Many libraries go on with a finite number outside the support.
            support = getattr(self.distribution, "support", None)
            if callable(support):
                out = jnp.where(jnp.all(jnp.asarray(support(args[-1]))), out, -jnp.inf)
        return out.astype(jax.tree.leaves(args[-1])[0].dtype)


def as_leaves(tree: Any) -> Any:
    """Turn the floats and NumPy arrays of a PyTree into arrays; integers and everything else stay static."""
    numbers = (np.ndarray, np.floating)
    return jax.tree.map(lambda x: jnp.asarray(x) if type(x) is float or isinstance(x, numbers) else x, tree)


@contextlib.contextmanager
def third_party() -> Iterator[None]:
    """Allow third-party code to mix dtypes and ranks, whatever the process forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def as_function(given: Any, name: str) -> Callable[..., Any]:
    """Return the function that a target evaluates: `given`, or its method `log_prob`."""
    if isinstance(given, type):
        raise TypeError(f"{name} is the class {given.__name__}; did you mean an instance, {given.__name__}(...)?")
    if isinstance(given, AbstractTarget):
        raise TypeError(
            f"{name} is a target already ({type(given).__name__}); expected a function of a particle. Use it as it is, "
            "or join two by Tilted(log_reference, value)."
        )
    # The method first, also if the object can be called: to call a distribution of numpyro is to draw from it.
    if hasattr(given, "log_prob"):
        return LogProb(given)
    if not callable(given):
        raise TypeError(
            f"{name} must be a function of one particle, a callable module or a distribution with a method log_prob, "
            f"got {type(given).__name__}."
        )
    return given


def called(function: Callable[..., Any], *args: Any, name: str, particle: Particle) -> Any:
    """Return `function(*args)`, one of which is the particle; if it fails, say that it gets no more than one."""
    try:
        return function(*args)
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError):
            raise  # of a branch on a traced number: nothing that shapes would explain
        _cut_within_jax(error)
        shape = jax.tree.map(jnp.shape, particle)
        lines = str(error).splitlines() or [""]
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} failed at one particle of shape {shape} ({type(error).__name__}: {lines[0]}). It is called with a "
            "single particle, without the particle axis n: for x of shape (d,) a sum over coordinates is jnp.sum(x)."
        ) from error


def _cut_within_jax(error: Exception) -> None:
    """End a traceback at the last line outside of JAX, as JAX does for errors that leave its own functions."""
    last, entry = None, error.__traceback__
    while entry is not None:
        last = last if entry.tb_frame.f_globals.get("__name__", "").startswith("jax.") else entry
        entry = entry.tb_next
    if last is not None and jax.config.jax_traceback_filtering != "off":  # pyright: ignore[reportAttributeAccessIssue]
        last.tb_next = None


def scalar(out: Any, name: str) -> Float[Array, ""]:
    """Return what a user's function gave as an array (); refuse any other shape."""
    if out is None:
        raise TypeError(f"{name} returned None for one particle; expected one scalar. Does it end with `return`?")
    try:
        out = jnp.asarray(out)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} returned a {type(out).__name__} for one particle; expected one scalar.") from error
    if out.shape != ():
        raise ValueError(
            f"{name} returned shape {out.shape} for one particle; expected one scalar. It is called with a single "
            "particle, without the particle axis: sum over coordinates (of a distribution with a batch shape: "
            ".to_event(1)), and aggregate an ensemble."
        )
    return out
