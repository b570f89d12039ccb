"""Five posteriors as numpyro models, with their data and what of them is compared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree


# --8<-- [start:models]
def logistic(x: Float[Array, "rows features"], y: Float[Array, " rows"]) -> None:
    """Logistic regression with standard normal priors."""
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=y)


def eight_schools(sigma: Float[Array, " schools"], y: Float[Array, " schools"]) -> None:
    """Effects of coaching in eight schools, non-centred (Rubin 1981; Bayesian Data Analysis, section 5.5)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def eight_schools_centred(sigma: Float[Array, " schools"], y: Float[Array, " schools"]) -> None:
    """The same distribution in coordinates in which it is a funnel: hard for every method here."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats: Float[Array, " players"], y: Float[Array, " players"]) -> None:
    """Batting of 18 players with a common distribution of their abilities, on the scale of log odds."""
    mu = numpyro.sample("mu", dist.Normal(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([18]).to_event(1))
    numpyro.sample("y", dist.Binomial(at_bats, logits=mu + sigma * z), obs=y)


def network(x: Float[Array, "rows features"], y: Float[Array, " rows"]) -> None:
    """A network of one hidden layer of five units, with standard normal priors."""
    weights: dict[str, Any] = {
        "inner": numpyro.sample("inner", dist.Normal(0.0, 1.0).expand([x.shape[1], 5]).to_event(2)),
        "inner_bias": numpyro.sample("inner_bias", dist.Normal(0.0, 1.0).expand([5]).to_event(1)),
        "outer": numpyro.sample("outer", dist.Normal(0.0, 1.0).expand([5]).to_event(1)),
        "outer_bias": numpyro.sample("outer_bias", dist.Normal(0.0, 1.0)),
    }
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(network_mean(weights, x), noise), obs=y)


def network_mean(weights: dict[str, Any], x: Float[Array, "rows features"]) -> Float[Array, " rows"]:
    """Return the network's output, scaled such that a wider one has the same prior variance."""
    hidden = jnp.tanh(x @ weights["inner"] / x.shape[1] ** 0.5 + weights["inner_bias"])
    return hidden @ weights["outer"] / 5**0.5 + weights["outer_bias"]


# --8<-- [end:models]
class Problem(NamedTuple):
    """A model with its data, and what of its posterior is compared."""

    model: Callable[..., None]
    data: dict[str, Array]
    test: dict[str, Array]  # held-out data in the same form; empty where there are none
    names: list[str]  # of the coordinates compared
    pair: tuple[str, str]  # the two of them that are drawn
    summary: Callable[[PyTree], Array] = lambda particle: ravel_pytree(particle)[0]  # these coordinates of one particle
    # The model whose NUTS run is the standard, and the map of its particles; None: the model itself.
    standard: tuple[Callable[..., None], Callable[[PyTree], PyTree]] | None = None


def load(name: str, seed: int) -> Problem:
    """Load the problem of this name; `seed` splits the data of scikit-learn into training and test."""
    if name in ("logistic", "network"):
        return _from_sklearn(name, seed)
    if name == "baseball":
        # Hits in the first 45 at bats of 1970, at bats and batting average in the rest of the season, from table 1 of
        # Efron and Morris, Data Analysis Using Stein's Estimator and Its Generalizations, JASA 70 (350), 1975.
        hits = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]
        later = [367, 426, 521, 275, 418, 466, 586, 138, 510, 200, 277, 270, 435, 538, 186, 558, 408, 70]
        average = [346, 298, 276, 222, 273, 270, 263, 210, 269, 230, 264, 256, 303, 264, 226, 285, 316, 200]
        later_hits = np.round(np.array(later) * np.array(average) / 1000)
        data = {"at_bats": jnp.full(18, 45.0), "y": jnp.asarray(hits, float)}
        test = {"at_bats": jnp.asarray(later, float), "y": jnp.asarray(later_hits)}
        names = ["mu", "log sigma", *(f"z[{i}]" for i in range(18))]
        return Problem(baseball, data, test, names, ("log sigma", "z[0]"))
    data = {"sigma": jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18]), "y": jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])}
    if name == "eight-schools":
        names = ["mu", "log tau", *(f"z[{i}]" for i in range(8))]
        return Problem(eight_schools, data, {}, names, ("log tau", "mu"))

    def centre(p: dict[str, Array]) -> dict[str, Array]:
        return {"mu": p["mu"], "tau": p["tau"], "theta": p["mu"][..., None] + jnp.exp(p["tau"])[..., None] * p["z"]}

    names = ["mu", "log tau", *(f"theta[{i}]" for i in range(8))]
    pair = ("log tau", "theta[0]")
    return Problem(eight_schools_centred, data, {}, names, pair, standard=(eight_schools, centre))


def _from_sklearn(name: str, seed: int) -> Problem:
    from sklearn import datasets  # here, so that --help is quick

    found: Any = datasets.load_breast_cancer() if name == "logistic" else datasets.load_diabetes()
    x, y = found.data, found.target.astype(float)
    rows = np.random.default_rng(seed).permutation(len(y))
    held_out, kept = rows[: len(y) // 5], rows[len(y) // 5 :]
    x = (x - x[kept].mean(axis=0)) / x[kept].std(axis=0)
    if name == "network":
        y = (y - y[kept].mean()) / y[kept].std()
    data, test = ({"x": jnp.asarray(x[part]), "y": jnp.asarray(y[part])} for part in (kept, held_out))
    if name == "logistic":
        return Problem(logistic, data, test, ["bias", *found.feature_names], ("mean area", "worst area"))
    names = [f"prediction {i}" for i in range(len(held_out))] + ["log noise"]
    summary = lambda particle: jnp.append(network_mean(particle, test["x"]), particle["noise"])
    return Problem(network, data, test, names, ("prediction 0", "prediction 1"), summary)
