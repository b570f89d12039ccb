"""Models of numpyro as targets: the joint log density over unconstrained coordinates, Jacobians included."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Key, Particle, Particles
from flowrl._distribution import require
from flowrl._misc import check_particles
from flowrl._target import Density, as_leaves, third_party


class LogJoint(eqx.Module):
    """The joint log density of a model over unconstrained sites; `key` is for what it draws beside them."""

    model: Callable[..., Any]
    args: PyTree
    kwargs: dict[str, PyTree]
    key: Key

    def __call__(self, particle: Particle) -> Float[Array, ""]:
        """Return log p(x(y), data) + log|det ∂x/∂y| at y, a dict from site to array."""
        with third_party():
            from numpyro.infer.util import potential_energy

            energy = potential_energy(_seeded(self), self.args, self.kwargs, particle)
            return -jnp.asarray(energy).astype(jax.tree.leaves(particle)[0].dtype)


class NumpyroPosterior(eqx.Module):
    """A model of numpyro as a target; made by `from_numpyro`.

    Particles are dicts from the name of a latent site to its unconstrained coordinates: what numpyro's own samplers
    move, by its own bijections.

    Attributes:
        target: the posterior over these coordinates, log-determinants of the bijections included.
        sites: the names of the latent sites.
    """

    target: Density
    sites: tuple[str, ...] = eqx.field(static=True)

    def initial(self, n: int, key: Key) -> Particles:
        """Draw particles from the prior; a site whose prior cannot be drawn from starts within 2 of zero.

        Args:
            n: how many, >= 1.
            key: randomness.

        Returns:
            A dict from site to unconstrained coordinates (n, ...).

        Raises:
            ValueError: `n` is not a Python int >= 1.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be a Python int >= 1, got {n!r}.")
        return _draw(self._joint, key, n)

    def constrain(self, particles: Particles) -> dict[str, Array]:
        """Map particles to the space in which the model is written.

        Args:
            particles: a dict from site to unconstrained coordinates (n, ...).

        Returns:
            A dict from site to values (n, ...), deterministic sites included.

        Raises:
            ValueError: the names are not those of the latent sites.
        """
        if not isinstance(particles, dict) or set(particles) != set(self.sites):
            got = sorted(particles) if isinstance(particles, dict) else type(particles).__name__
            raise ValueError(f"particles must be a dict over the latent sites {sorted(self.sites)}, got {got}.")
        check_particles(particles)
        return _constrain(self._joint, particles)

    @property
    def _joint(self) -> LogJoint:
        assert isinstance(self.target.function, LogJoint)
        return self.target.function


def from_numpyro(model: Callable[..., Any], *model_args: Any, key: Key, **model_kwargs: Any) -> NumpyroPosterior:
    r"""Create a target from a numpyro model.

    Bounded sites are moved in unconstrained coordinates y, x = T(y) with numpyro's bijection T to the support, and the
    target is $\log p(T(y), \text{data}) + \log |\det ∂T/∂y|$: particles that follow it have, once constrained, the
    model's own posterior.

    Args:
        model: a function with numpyro's primitives; all its latent sites are continuous. Use a named function: a new
            one recompiles.
        model_args: its arguments. Arrays and floats are leaves of the target: new data of the same shape do not
            recompile. Integers (sizes of plates) and strings stay static.
        key: randomness of the model beside its sites (`numpyro.prng_key`); drawn once, the same at every step.
        model_kwargs: its keyword arguments, in the same way; the data are given here, so that they are observed. A
            model whose own argument is named `key` needs a wrapper.

    Returns:
        The `NumpyroPosterior`: its `target`, `initial(n, key)` particles from the prior, and `constrain(particles)`.

    Raises:
        ImportError: numpyro is not installed.
        ValueError: a latent site is discrete, there is none, or the model subsamples its data or optimises parameters.

    Example:
        ```python
        import jax.random as jr
        import flowrl
        import numpyro
        import numpyro.distributions as dist

        def model():
            numpyro.sample("rate", dist.Gamma(3.0, 1.0))

        posterior = flowrl.from_numpyro(model, key=jr.key(0))
        solution = flowrl.transport(posterior.target, posterior.initial(50, jr.key(1)), flowrl.Budget(100, 0.5))
        rates = posterior.constrain(solution.particles)["rate"]
        ```
    """
    require("numpyro", extra="bayes")
    if not callable(model):
        raise TypeError(f"model must be a function with numpyro's primitives, got {type(model).__name__}.")
    args, kwargs = as_leaves((tuple(model_args), dict(model_kwargs)))
    joint, sites = LogJoint(model, args, kwargs, key), []

    def find(joint: LogJoint) -> None:
        sites.extend(_latent(_trace(joint, joint.key)))

    with third_party():
        eqx.filter_eval_shape(find, joint)  # an abstract run: nothing is computed
    return NumpyroPosterior(Density(joint), tuple(sites))


@eqx.filter_jit
def _draw(joint: LogJoint, key: Key, n: int) -> Particles:
    from numpyro.distributions import biject_to
    from numpyro.infer.util import helpful_support_errors

    def one(key: Key) -> Particle:
        particle = {}
        for name, site in _latent(_trace(joint, key)).items():
            with helpful_support_errors(site):
                # With the support of this draw: it may depend on other sites.
                particle[name] = biject_to(site["fn"].support).inv(site["value"])
        dtype = jnp.result_type(*particle.values())
        return {name: value.astype(dtype) for name, value in particle.items()}

    with third_party():
        return jax.vmap(one)(jr.split(key, n))


@eqx.filter_jit
def _constrain(joint: LogJoint, particles: Particles) -> dict[str, Array]:
    from numpyro.infer.util import constrain_fn

    with third_party():
        return constrain_fn(
            _seeded(joint), joint.args, joint.kwargs, particles, return_deterministic=True, batch_ndims=1
        )


def _trace(joint: LogJoint, key: Key) -> dict[str, Any]:
    """Run the model once, its latent sites drawn from the prior."""
    from numpyro.handlers import seed, substitute, trace
    from numpyro.infer import init_to_sample

    model = substitute(seed(joint.model, key), substitute_fn=init_to_sample)
    return trace(model).get_trace(*joint.args, **joint.kwargs)


def _latent(trace: dict[str, Any]) -> dict[str, Any]:
    """Return the sites that particles are made of; refuse a model that has others without a value."""
    from numpyro.distributions import Delta

    found = {}
    for name, site in trace.items():
        kind = site["type"]
        if kind in ("param", "mutable"):
            raise ValueError(
                f"the model's site {name!r} is a numpyro.{kind}, which nothing would change here. Make it a "
                "numpyro.sample, or pass it as an argument of the model."
            )
        if kind == "plate" and site["args"][1] is not None and site["args"][1] < site["args"][0]:
            raise ValueError(
                f"plate {name!r} of the model subsamples its data. Drop its subsample_size; for minibatches write the "
                "likelihood of one datum and use Posterior(log_prior, log_likelihood, data, batch_size)."
            )
        if kind != "sample" or site["is_observed"]:
            continue
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"the model's latent site {name!r} is discrete ({type(site['fn']).__name__}), and particles move only "
                "through continuous coordinates. Sum it out, for example by numpyro.distributions.MixtureSameFamily, "
                "or give its value by obs=."
            )
        if isinstance(site["fn"], Delta):
            raise ValueError(f"the model's site {name!r} is a Delta; write numpyro.deterministic({name!r}, ...).")
        found[name] = site
    if not found:
        raise ValueError("the model has no latent site: every numpyro.sample of it is observed, so nothing can move.")
    return found


def _seeded(joint: LogJoint) -> Callable[..., Any]:
    """Return the model with a fixed key for whatever it draws beside its sites."""
    from numpyro.handlers import seed

    return seed(joint.model, joint.key)
