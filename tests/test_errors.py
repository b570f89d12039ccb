"""Misuse is refused before anything runs, in words that say what was got, what was expected and how to mend it.

The calls run in one process without the type checker of these tests, so the errors are those a user sees.
"""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PRELUDE = """
import dataclasses
import flowrl
import jax, jax.numpy as jnp, numpy as np, optax
from flowrl import Ascent, Boltzmann, Box, Budget, Density, Score, ValueGradient, transport

def log_normal(x):
    return -0.5 * jnp.sum(x**2)

class Noise(flowrl.AbstractStochasticFlow):
    traits = flowrl.Traits(diffuses=True)
    velocity = noise = lambda self, *args: None

class Jumps(flowrl.AbstractJumpFlow):
    traits = flowrl.Traits(jumps=True)
    velocity = ancestors = lambda self, *args: None

class Divides(flowrl.AbstractFlow):
    traits = flowrl.Traits(temperature="positive")
    velocity = lambda self, *args: None

class Samples(flowrl.AbstractFlow):
    traits = flowrl.Traits(needs=frozenset({"samples"}))
    velocity = lambda self, *args: None

class Values(flowrl.AbstractFlow):
    traits = flowrl.Traits(needs=frozenset({"value"}))
    velocity = lambda self, *args: None

class Silent(flowrl.AbstractFlow):
    traits = flowrl.Traits(diffuses=True)
    velocity = lambda self, *args: None

class Unmoved(flowrl.AbstractFlow):
    traits = flowrl.Traits(jumps=True)
    velocity = lambda self, *args: None

class UnitAscent(flowrl.AbstractFlow):
    traits = flowrl.Traits()
    def velocity(self, view, positions, alive):
        gradient, alive = view.gradient(positions, alive)
        return jnp.linalg.norm(gradient, axis=1, keepdims=True), alive

class Alone(UnitAscent):
    velocity = lambda self, view, positions, alive: positions

class Maskless(UnitAscent):
    velocity = lambda self, view, positions, alive: (positions, alive[:, None])

class Undeclared(UnitAscent):
    velocity = lambda self, view, positions, alive: (jax.random.normal(view.flow_key, positions.shape), alive)

class OneNoise(flowrl.AbstractStochasticFlow):
    traits = flowrl.Traits(diffuses=True)
    velocity = lambda self, view, positions, alive: (positions, alive)
    noise = lambda self, view, positions, alive, white: white[:, :1]

class OneMove(flowrl.AbstractStepSolver):
    needs = flowrl.Needs()
    step = lambda self, step, ensemble: ensemble.moved(ensemble.positions[:, :1])

class VectorValue(flowrl.AbstractValueTarget):
    needs_positive_temperature = False
    value = lambda self, x: x
    scaled_log_density = lambda self, x, temperature, *, key: x

class OwnGradient(flowrl.AbstractTarget):
    knows = frozenset({"gradient", "value"})
    needs_positive_temperature = False
    gradient = lambda self, x, temperature, *, key: -x
    value = lambda self, x: x
    scaled_log_density = lambda self, x, temperature, *, key: x

class SumGradient(OwnGradient):
    gradient = lambda self, x, temperature, *, key: jnp.sum(x)

class Misspelt(OwnGradient):
    knows = frozenset({"grad"})

class NoValue(flowrl.AbstractTarget):
    knows = frozenset({"value"})
    needs_positive_temperature = False
    value = lambda self, x: jnp.sum(x)

class Misled(flowrl.AbstractFlow):
    traits = flowrl.Traits(needs=frozenset({"gradiant"}))
    velocity = lambda self, view, positions, alive: (positions, alive)

class Energetic(flowrl.AbstractFlow):
    traits = flowrl.Traits(energy_needs=frozenset({"value"}))
    velocity = lambda self, *args: None

class Adaptive(flowrl.AbstractSolver):
    needs = flowrl.Needs(restriction=False)
    solve = lambda self, *args: None

class Proximal(flowrl.AbstractSolver):
    needs = flowrl.Needs(energy=True)
    solve = lambda self, *args: None

normal, x, budget = Density(log_normal), jnp.ones((4, 2)), Budget(2)
"""

# A call, the error, and words that its message must hold.
CASES = {
    # Particles
    "scalar": ("transport(normal, jnp.ones(()), budget)", ValueError, ["scalar", "leading axis n", "(n, d)"]),
    "empty tree": ("transport(normal, {}, budget)", ValueError, ["no array leaves", "(n, d)"]),
    "no particle": ("transport(normal, jnp.ones((0, 2)), budget)", ValueError, ["n = 0", "vmap"]),
    "sizes": ("transport(normal, {'a': x, 'b': x[:3]}, budget)", ValueError, ["disagree", "['a']", "4", "3"]),
    "integers": ("transport(normal, jnp.ones((4, 2), int), budget)", TypeError, ["int32", "Boltzmann(value, tokens)"]),
    "booleans": ("transport(normal, {'mask': jnp.ones((4, 2), bool)}, budget)", TypeError, ["['mask']", "bool"]),
    "complex": ("transport(normal, x.astype(complex), budget)", TypeError, ["complex64", "floating"]),
    "dtypes": (
        "transport(normal, {'a': x, 'b': x.astype(jnp.float16)}, budget)",
        TypeError,
        ["different dtypes", "float16"],
    ),
    "keys": ("transport(normal, jax.random.split(jax.random.key(0), 4), budget)", TypeError, ["floating"]),
    "nan": ("transport(normal, x.at[1, 1].set(jnp.nan), budget)", ValueError, ["NaN or infinity", "repair"]),
    "infinity": ("transport(normal, x.at[1, 1].set(jnp.inf), budget)", ValueError, ["NaN or infinity"]),
    "lists": ("transport(normal, [[1.0, 2.0], [3.0, 4.0]], budget)", ValueError, ["scalar", "jnp.asarray"]),
    # Weights
    "weights of pairs": ("transport(normal, x, budget, log_weights=x)", ValueError, ["log_weights", "got (4, 2)"]),
    "one weight": ("transport(normal, x, budget, log_weights=0.0)", ValueError, ["log_weights", "got ()"]),
    "weights in a word": (
        "transport(normal, x, budget, log_weights='equal')",
        TypeError,
        ["log_weights must be a number or an array"],
    ),
    "complex weights": (
        "transport(normal, x, budget, log_weights=np.full(4, 1j))",
        TypeError,
        ["log_weights must be a real number"],
    ),
    "boolean weights": (
        "transport(normal, x, budget, log_weights=[True] * 4)",
        TypeError,
        ["log_weights must be a real number"],
    ),
    # Targets
    "unwrapped target": ("transport(log_normal, x, budget)", TypeError, ["Boltzmann(value)", "Density(log_prob)"]),
    "swapped": ("transport(x, normal, budget)", TypeError, ["target must be", "Empirical(samples)"]),
    "a number for a score": ("Score(3)", TypeError, ["score", "function", "3"]),
    "supports of a class": (
        "flowrl.supports(flowrl.SVGD, flowrl.Euler(), flowrl.Unbounded())",
        TypeError,
        ["instance of AbstractFlow", "SVGD"],
    ),
    "infinite bandwidth": ("flowrl.FixedBandwidth(jnp.inf)", ValueError, ["sigma", "positive"]),
    "vector value": ("transport(Boltzmann(lambda x: x**2), x, budget)", ValueError, ["(2,)", "one scalar", "sum over"]),
    "vector log density": ("transport(Density(lambda x: x), x, budget)", ValueError, ["log_prob", "(2,)"]),
    "ensemble": ("transport(Boltzmann(lambda x: x.sum()[None]), x, budget)", ValueError, ["(1,)", "ensemble"]),
    "score shape": ("transport(Score(lambda x: x.sum()), x, budget)", ValueError, ["score", "()", "(2,)"]),
    "gradient shape": (
        "transport(ValueGradient(lambda x: jnp.ones(3)), x, budget)",
        ValueError,
        ["value_gradient", "(3,)", "(2,)"],
    ),
    "score structure": ("transport(Score(lambda x: x['a']), {'a': x}, budget)", ValueError, ["score", "must be equal"]),
    "target class": ("transport(VectorValue, x, budget)", TypeError, ["class VectorValue", "VectorValue(...)"]),
    "vector of a target of ones own": (
        "transport(VectorValue(), x, budget)",
        ValueError,
        ["VectorValue.scaled_log_density", "(2,)", "one scalar", "sum over"],
    ),
    "vector values of a target of ones own": (
        "transport(OwnGradient(), x, budget)",
        ValueError,
        ["OwnGradient.value", "(2,)", "one scalar"],
    ),
    "vector log density of a target of ones own": (
        "transport(OwnGradient(), x, Budget(2, temperature=1.0), flow=flowrl.Consensus(), key=jax.random.key(0))",
        ValueError,
        ["OwnGradient.scaled_log_density", "(2,)", "one scalar"],
    ),
    "gradient of one number": (
        "transport(SumGradient(), x, budget)",
        ValueError,
        ["SumGradient.gradient", "1 numbers", "particle of 2"],
    ),
    "knowledge misspelt": ("Misspelt()", TypeError, ["Misspelt.knows", "'grad'", "write grad()"]),
    "knowledge without a method": ("NoValue()", TypeError, ["NoValue.knows", "'value'", "write scaled_log_density()"]),
    "samples of a density": ("normal.samples()", TypeError, ["a value and a gradient", "Empirical(samples)"]),
    "value of a score": ("Score(jnp.negative).value(x[0])", TypeError, ["only a gradient", "Density(log_prob)"]),
    "value of a gradient": (
        "ValueGradient(jnp.negative).scaled_log_density(x[0], 1.0, key=None)",
        TypeError,
        ["only a gradient", "Boltzmann(value)"],
    ),
    "cold density": (
        "transport(normal, x, Budget(2, 0.1, 0.0))",
        ValueError,
        ["Density", "temperature 0", "Boltzmann"],
    ),
    "cold at one step": (
        "transport(Score(jnp.negative), x, Budget(2, 0.1, [1, 0]))",
        ValueError,
        ["Score", "Ascent()"],
    ),
    "target as a function": ("Density(Boltzmann(log_normal))", TypeError, ["target already", "Boltzmann", "Tilted"]),
    "no function": ("Density(jnp.ones(2))", TypeError, ["log_prob", "function of one particle", "ArrayImpl"]),
    "value no function": ("Boltzmann(3)", TypeError, ["value", "function of one particle", "int"]),
    "distribution class": (
        "Density(type('Normal', (), {'log_prob': log_normal}))",
        TypeError,
        ["class Normal", "Normal(...)"],
    ),
    "tilt swapped": (
        "flowrl.Tilted(Boltzmann(log_normal), normal)",
        TypeError,
        ["log_reference is Boltzmann", "α log μ", "Tilted(log_reference, value)"],
    ),
    "tilt by a density": (
        "flowrl.Tilted(normal, normal)",
        TypeError,
        ["value is Density", "vanish at α = 0", "Tilted(log_prior, log_likelihood)"],
    ),
    "tilted samples": ("flowrl.Tilted(flowrl.Empirical(x), log_normal)", TypeError, ["Empirical", "no gradient"]),
    "likelihood missing": (
        "flowrl.Posterior(log_normal, None, x)",
        TypeError,
        ["log_likelihood", "(particle, datum)", "None"],
    ),
    "data sizes": (
        "flowrl.Posterior(log_normal, log_normal, {'inputs': x, 'y': x[:3]})",
        ValueError,
        ["disagree", "N", "data['inputs']", "4", "3"],
    ),
    "no data": ("flowrl.Posterior(log_normal, log_normal, x[:0])", ValueError, ["N = 0", "Density(log_prior)"]),
    "empty data": ("flowrl.Posterior(log_normal, log_normal, {})", ValueError, ["no array leaves", "(N, ...)"]),
    "data constant": (
        "flowrl.Posterior(log_normal, log_normal, {'x': x, 'noise': 0.5})",
        ValueError,
        ["data['noise'] is a scalar", "leading axis N"],
    ),
    "data words": ("flowrl.Posterior(log_normal, log_normal, {'x': 'file'})", TypeError, ["arrays (N, ...)", "'file'"]),
    "batch of none": (
        "flowrl.Posterior(log_normal, log_normal, x, 0)",
        ValueError,
        ["batch_size", "from 1 to 4", "all 4"],
    ),
    "batch fraction": ("flowrl.Posterior(log_normal, log_normal, x, 0.5)", TypeError, ["Python int or None", "0.5"]),
    "batch bool": ("flowrl.Posterior(log_normal, log_normal, x, True)", TypeError, ["Python int or None", "True"]),
    "likelihood of all data": (
        "flowrl.Posterior(log_normal, lambda x, y: x - y, x).value(x[0])",
        ValueError,
        ["log_likelihood of one datum", "(2,)", "one scalar"],
    ),
    "batch without a key": (
        "transport(flowrl.Posterior(log_normal, lambda x, y: log_normal(x - y), x, 2), x, budget)",
        ValueError,
        ["SVGD toward Posterior is stochastic", "jax.random.key"],
    ),
    "integer samples": ("flowrl.Empirical(jnp.ones((4, 2), int))", TypeError, ["samples", "int32", "floating"]),
    "empty samples": ("flowrl.Empirical(x[:0])", ValueError, ["no sample", "m = 0", "m >= 1"]),
    "sample sizes": ("flowrl.Empirical({'a': x, 'b': x[:3]})", ValueError, ["samples", "disagree", "4", "3"]),
    "nan samples": ("flowrl.Empirical(x * jnp.nan)", ValueError, ["samples", "NaN or infinity"]),
    "gradient of samples": (
        "flowrl.Empirical(x).gradient(x[0], 1.0, key=None)",
        TypeError,
        ["knows only samples", "Density(log_prob)"],
    ),
    "svgd toward samples": (
        "transport(flowrl.Empirical(x), x, budget)",
        ValueError,
        ["SVGD needs the gradient", "Empirical does not know"],
    ),
    "numpyro model": ("flowrl.from_numpyro(3, key=jax.random.key(0))", TypeError, ["model", "numpyro", "int"]),
    # Sampling
    "sample without a key": ("flowrl.sample(log_normal, 5, like=x[0], key=None)", ValueError, ["key=jax.random.key"]),
    "sample by a seed": ("flowrl.sample(log_normal, 5, like=x[0], key=0)", TypeError, ["jax.random.key(0)", "got 0"]),
    "sample by keys": (
        "flowrl.sample(log_normal, 5, like=x[0], key=jax.random.split(jax.random.key(0)))",
        ValueError,
        ["one key", "vmap"],
    ),
    "sample complex": (
        "flowrl.sample(lambda x: 1j * log_normal(x), 5, like=x[0], key=jax.random.key(0))",
        TypeError,
        ["complex64", "real floating number"],
    ),
    "sample a count": (
        "flowrl.sample(lambda x: jnp.sum(x > 0), 5, like=x[0], key=jax.random.key(0))",
        TypeError,
        ["int32", "gradient"],
    ),
    "sample complex particles": (
        "flowrl.sample(log_normal, 5, like=x[0] * 1j, key=jax.random.key(0))",
        TypeError,
        ["complex64", "only floating"],
    ),
    "sample integers": (
        "flowrl.sample(log_normal, 5, like=jnp.zeros(2, int), key=jax.random.key(0))",
        TypeError,
        ["int32", "only floating"],
    ),
    "sample given integers": (
        "flowrl.sample(log_normal, jnp.zeros((5, 2), int), key=jax.random.key(0))",
        TypeError,
        ["int32", "only floating"],
    ),
    "sample nothing": ("flowrl.sample(log_normal, 5, like={}, key=jax.random.key(0))", ValueError, ["no array leaves"]),
    # Budgets
    "budget of another kind": ("transport(normal, x, 10)", TypeError, ["flowrl.Budget", "int"]),
    "negative steps": ("Budget(-1)", ValueError, ["steps must be >= 0", "-1"]),
    "bool steps": ("Budget(True)", TypeError, ["Python int", "True"]),
    "float steps": ("Budget(10.0)", TypeError, ["Python int", "10.0"]),
    "word steps": ("Budget('10')", TypeError, ["Python int", "'10'"]),
    "float array steps": ("Budget(jnp.ones(()), max_steps=3)", TypeError, ["integer scalar", "float32"]),
    "vector steps": ("Budget(jnp.arange(3), max_steps=3)", TypeError, ["integer scalar", "[3]"]),
    "array steps without bound": ("Budget(jnp.asarray(3))", ValueError, ["bound", "max_steps=10"]),
    "array steps beyond bound": ("Budget(jnp.asarray(5), max_steps=3)", ValueError, ["max_steps=3", "5"]),
    "bound of static steps": ("Budget(3, max_steps=5)", ValueError, ["leave it out"]),
    "negative step size": ("Budget(3, -0.1)", ValueError, ["step_size", ">= 0", "-0.1"]),
    "nan step size": ("Budget(3, float('nan'))", ValueError, ["step_size", "finite", "nan"]),
    "a step size too few": ("Budget(3, [0.1, 0.2])", ValueError, ["step_size", "(3,)", "(2,)"]),
    "save a number": ("transport(normal, x, budget, save=3)", ValueError, ["increasing step counts", "0 and 2", "3"]),
    "box structures": ("Box({'a': -1.0}, 1.0)", ValueError, ["same structure", "low", "high"]),
    "box faces": (
        "transport(normal, x, budget, domain=Box(jnp.zeros(3), jnp.ones(3)))",
        ValueError,
        ["faces of Box", "(3,)", "(2,)"],
    ),
    "flow class": ("transport(normal, x, budget, flow=flowrl.SVGD)", TypeError, ["instance of AbstractFlow", "SVGD()"]),
    "solver optax": ("transport(normal, x, budget, solver=optax.adam(1.0))", TypeError, ["solver", "Optax("]),
    "domain tuple": ("transport(normal, x, budget, domain=(-1, 1))", TypeError, ["domain", "Box(-1, 1)"]),
    "kernel number": ("flowrl.RBF(0.5)", TypeError, ["FixedBandwidth(0.5)"]),
    "svgd bandwidth": ("flowrl.SVGD(flowrl.FixedBandwidth(0.5))", TypeError, ["RBF()"]),
    "optax factory": ("flowrl.Optax(optax.adam)", TypeError, ["optax.adam(1.0)"]),
    "cold softmax": (
        "flowrl.softmax_select(x, jnp.ones(4), 0.0, key=jax.random.key(0))",
        ValueError,
        ["selection_temperature", "> 0", "best_of_n"],
    ),
    "word step size": ("Budget(3, 'large')", TypeError, ["step_size", "number", "'large'"]),
    "complex step size": ("Budget(3, 1j)", TypeError, ["step_size", "real"]),
    "negative schedule": ("Budget(3, lambda l: 1.0 - l)", ValueError, ["step_size", ">= 0", "-1"]),
    "negative temperature": ("Budget(3, 0.1, -1)", ValueError, ["temperature", ">= 0", "-1"]),
    "temperature matrix": ("Budget(1, 0.1, [[1.0]])", ValueError, ["temperature", "(1, 1)"]),
    "negative displacement": ("Budget(3, max_displacement=-1)", ValueError, ["max_displacement", ">= 0", "-1"]),
    "nan displacement": ("Budget(3, max_displacement=float('nan'))", ValueError, ["max_displacement", "nan"]),
    "displacements": ("Budget(3, max_displacement=[1, 2])", ValueError, ["max_displacement", "one number", "(2,)"]),
    "zero scale": ("Budget(3, scale=[1.0, 0.0])", ValueError, ["scale", "> 0", "0."]),
    "negative scale": ("Budget(3, scale=-1.0)", ValueError, ["scale", "> 0", "-1"]),
    "infinite scale": ("Budget(3, scale=jnp.inf)", ValueError, ["scale", "finite"]),
    "scale shape": ("transport(normal, x, Budget(2, scale=jnp.ones(3)))", ValueError, ["scale", "(3,)", "(2,)"]),
    "temperature of ascent": (
        "transport(Boltzmann(log_normal), x, Budget(2, 0.1, 1.0), flow=Ascent())",
        ValueError,
        ["Ascent has no entropy", "temperature=None"],
    ),
    "negative tolerance": ("Budget(3, tolerance=-1)", ValueError, ["tolerance", ">= 0", "-1"]),
    "negative discrepancy": ("Budget(3, max_mmd=-0.1)", ValueError, ["max_mmd", ">= 0", "-0.1"]),
    "no bandwidth": ("Budget(3, max_mmd=0.1, mmd_sigma=0.0)", ValueError, ["mmd_sigma", "> 0"]),
    "a bandwidth of nothing": ("Budget(3, mmd_sigma=1.0)", ValueError, ["mmd_sigma", "max_mmd"]),
    "check nothing": ("Budget(3, check_every=5)", ValueError, ["check_every", "tolerance", "max_mmd"]),
    "bound by fractions": ("Budget(jnp.asarray(2), max_steps=2.5)", TypeError, ["max_steps", "Python int", "2.5"]),
    "check never": ("Budget(3, check_every=0)", ValueError, ["check_every", ">= 1", "0"]),
    "check by fractions": ("Budget(3, check_every=1.5)", ValueError, ["check_every", "Python int", "1.5"]),
    "noise at rest": (
        "transport(normal, x, Budget(3, tolerance=0.1), flow=Noise(), key=jax.random.key(0))",
        ValueError,
        ["Noise", "never come to rest", "tolerance=None"],
    ),
    "capped jumps": (
        "transport(normal, x, Budget(3, max_displacement=0.1), flow=Jumps(), key=jax.random.key(0))",
        ValueError,
        ["Jumps", "jump", "max_displacement"],
    ),
    "cold where it divides": (
        "transport(Boltzmann(log_normal), x, Budget(3, 0.1, 0.0), flow=Divides())",
        ValueError,
        ["Divides divides by the temperature", "> 0"],
    ),
    "spread of one sample": ("flowrl.spread(jnp.ones((1, 3)))", ValueError, ["(1, 3)", "n >= 2"]),
    "spread of no state": ("flowrl.spread(jnp.ones((0, 5, 3)))", ValueError, ["(0, 5, 3)", "no state"]),
    "spread floor": ("flowrl.spread(x, floor=0.0)", ValueError, ["floor", "> 0"]),
    # Domains
    "low above high": ("Box(1, -1)", ValueError, ["low < high", "low=1", "high=-1"]),
    "low equal to high": ("Box([0, 0], [1, 0])", ValueError, ["low < high"]),
    "nan face": ("Box(float('nan'), 1)", ValueError, ["low < high", "nan"]),
    "way of a box": (
        "Box(-1, 1, by='clip')",
        ValueError,
        ["Box", "'clip'", '"project"', '"reflect"', '"bijector"', '"mirror"'],
    ),
    "way of the positive reals": ("flowrl.positive('softplus')", ValueError, ["'softplus'", '"bijector"']),
    "way of a ball": ("flowrl.Ball(by='clip')", ValueError, ["Ball", "'clip'", '"mirror"']),
    "way of a simplex": ("flowrl.Simplex('clip')", ValueError, ["Simplex", "'clip'", '"mirror"']),
    "reflected simplex": ("flowrl.Simplex('reflect')", ValueError, ["no interior", '"mirror"', '"project"']),
    "radius": ("flowrl.Ball(radius=0)", ValueError, ["radius", "> 0", "0"]),
    "radii": ("flowrl.Ball(radius=[1.0, 2.0])", ValueError, ["radius", "one number", "(2,)"]),
    "centre": ("flowrl.Ball(jnp.inf)", ValueError, ["centre", "finite", "inf"]),
    "centre shape": (
        "transport(normal, x, budget, domain=flowrl.Ball(jnp.zeros(3)))",
        ValueError,
        ["centre of Ball", "(3,)", "(2,)"],
    ),
    "no probability vectors": (
        "transport(normal, x[:, 0], budget, domain=flowrl.Simplex())",
        ValueError,
        ["Simplex", "K >= 2", "last axis", "()"],
    ),
    "not a probability vector": (
        "transport(normal, x, budget, domain=flowrl.Simplex())",
        ValueError,
        ["4 of 4 particles", "Simplex"],
    ),
    "start on a face of a map": (
        "transport(normal, x, budget, domain=Box(0, 1, by='mirror'))",
        ValueError,
        ["4 of 4 particles", "outside Box"],
    ),
    "product of numbers": ("flowrl.Product({'a': 1.0})", TypeError, ["PyTree of domains", "1.0", "Unbounded()"]),
    "product of classes": ("flowrl.Product({'a': flowrl.Simplex})", TypeError, ["Simplex()"]),
    "empty product": ("flowrl.Product({})", ValueError, ["at least one domain"]),
    "product of another structure": (
        "transport(normal, {'a': x}, budget, domain=flowrl.Product({'b': flowrl.positive()}))",
        ValueError,
        ["Product", "'b'", "'a'"],
    ),
    "reflection by an integrator": (
        "transport(normal, x, budget, solver=Adaptive(), domain=flowrl.Ball(radius=9, by='reflect'))",
        ValueError,
        ["Adaptive in Ball", "not an ordinary differential equation"],
    ),
    "outside": (
        "transport(normal, x.at[2:].set(3.0), budget, domain=Box(-1, 1))",
        ValueError,
        ["2 of 4 particles", "Box", "index 2", "restrict"],
    ),
    "bandwidth": ("flowrl.FixedBandwidth(0.0)", ValueError, ["sigma", "positive", "0"]),
    "bandwidths": ("flowrl.FixedBandwidth([1.0, 2.0])", ValueError, ["sigma", "one number", "(2,)"]),
    # Trajectories
    "save out of order": ("transport(normal, x, budget, save=(1, 0))", ValueError, ["increasing", "0 and 2", "(1, 0)"]),
    "save twice": ("transport(normal, x, budget, save=(1, 1))", ValueError, ["increasing"]),
    "save beyond the end": ("transport(normal, x, budget, save=[0, 3])", ValueError, ["between 0 and 2", "3"]),
    "save before the start": ("transport(normal, x, budget, save=(-1, 0))", ValueError, ["between 0 and 2", "-1"]),
    "save nothing": ("transport(normal, x, budget, save=())", ValueError, ["increasing step counts"]),
    "save fractions": ("transport(normal, x, budget, save=(0.5, 1.0))", ValueError, ["step counts", "0.5"]),
    # Combinations
    "noise by optax": (
        "transport(normal, x, budget, flow=Noise(), solver=flowrl.Optax())",
        ValueError,
        ["Noise with Optax", "stochastic", "Euler()"],
    ),
    "projection by an integrator": (
        "transport(normal, x, budget, solver=Adaptive(), domain=Box(-1, 1))",
        ValueError,
        ["Adaptive in Box", "not an ordinary differential equation", "Euler()"],
    ),
    "needs misspelt": (
        "transport(normal, x, budget, flow=Misled())",
        ValueError,
        ["Misled needs the gradiant of its target", "Density", "`knows` has 'gradiant'"],
    ),
    "needs a word": ("flowrl.Traits(needs='gradient')", ValueError, ["needs", "frozenset({'gradient'})"]),
    "energy needs no word": ("flowrl.Traits(energy_needs=frozenset({'a V'}))", ValueError, ["energy_needs", "'a V'"]),
    "temperature misspelt": ("flowrl.Traits(temperature='non')", ValueError, ["'non'", "'none', 'any', 'positive'"]),
    "velocity of one column": (
        "transport(normal, x, budget, flow=UnitAscent())",
        ValueError,
        ["UnitAscent.velocity gave shape (4, 1); expected (4, 2)"],
    ),
    "velocity of one column by optax": (
        "transport(normal, x, budget, flow=UnitAscent(), solver=flowrl.Optax())",
        ValueError,
        ["UnitAscent.velocity gave shape (4, 1); expected (4, 2)"],
    ),
    "velocity of one column by diffrax": (
        "transport(normal, x, budget, flow=UnitAscent(), solver=flowrl.Diffrax())",
        ValueError,
        ["UnitAscent.velocity gave shape (4, 1); expected (4, 2)"],
    ),
    "velocity of one column in a sum": (
        "transport(normal, x, budget, flow=UnitAscent() + flowrl.SVGD())",
        ValueError,
        ["UnitAscent.velocity gave shape (4, 1); expected (4, 2)"],
    ),
    "velocity alone": (
        "transport(normal, x, budget, flow=Alone())",
        TypeError,
        ["Alone.velocity", "who is still alive"],
    ),
    "mask of another shape": (
        "transport(normal, x, budget, flow=Maskless())",
        ValueError,
        ["Maskless.velocity", "(4, 1)", "alive", "(4,)"],
    ),
    "noise of one column": (
        "transport(normal, x, budget, flow=OneNoise(), key=jax.random.key(0))",
        ValueError,
        ["OneNoise.noise gave shape (4, 1); expected (4, 2)"],
    ),
    "move of one column": (
        "transport(normal, x, budget, flow=Ascent(), solver=OneMove())",
        ValueError,
        ["(4, 1)", "expected (4, 2)"],
    ),
    "randomness undeclared": (
        "transport(normal, x, budget, flow=Undeclared(), key=jax.random.key(0))",
        ValueError,
        ["flow_key", "Traits(random=True)"],
    ),
    "noise without a method": (
        "transport(normal, x, budget, flow=Silent(), key=jax.random.key(0))",
        TypeError,
        ["Silent", "diffuses=True", "AbstractStochasticFlow", "noise()"],
    ),
    "jumps without a method": (
        "flowrl.Transport(Unmoved())",
        TypeError,
        ["Unmoved", "jumps=True", "AbstractJumpFlow", "ancestors()"],
    ),
    "energy without a method": ("flowrl.Transport(Energetic())", TypeError, ["Energetic", "write energy()"]),
    "energy of a flow without": (
        "flowrl.SVGD().energy(None, x, jnp.ones(4, bool))",
        TypeError,
        ["SVGD has no energy", "Ascent, Blob"],
    ),
    "a number for a key": ("transport(normal, x, budget, key=0)", TypeError, ["key", "jax.random.key(0)", "got 0"]),
    "an array for a key": ("transport(normal, x, budget, key=x)", TypeError, ["key", "jax.random.key(0)"]),
    "several keys": (
        "transport(normal, x, budget, key=jax.random.split(jax.random.key(0), 3))",
        ValueError,
        ["one key", "(3,)", "vmap"],
    ),
    "no finite particle": (
        "transport(Density(lambda x: jnp.sum(jnp.sqrt(x - 9))), x, budget)",
        RuntimeError,
        ["score", "or the flow's velocity", "throw=False"],
    ),
    "no energy to descend": (
        "transport(normal, x, budget, solver=Proximal())",
        ValueError,
        ["SVGD with Proximal", "energy", "has none"],
    ),
    "no key": ("transport(normal, x, budget, flow=Noise())", ValueError, ["Noise", "stochastic", "jax.random.key"]),
    "unknown option": ("transport(normal, x, budget, steps=3)", TypeError, ["steps"]),
    "no samples": (
        "transport(normal, x, budget, flow=Samples())",
        ValueError,
        ["Samples needs the samples", "Density does not know", "Empirical(samples)"],
    ),
    "no value": (
        "transport(Score(jnp.negative), x, budget, flow=Values())",
        ValueError,
        ["Values needs the value", "Score does not know", "Boltzmann(value)"],
    ),
    "a method of another kind": (
        "flowrl.Stepper(normal, budget, flowrl.SVGD())",
        TypeError,
        ["flowrl.Transport", "SVGD"],
    ),
    "steps of a whole": (
        "flowrl.Stepper(normal, budget, flowrl.Transport(solver=Adaptive()))",
        TypeError,
        ["Adaptive", "step by step", "Euler()"],
    ),
    # Policies
    "a number for a policy's budget": (
        "__import__('flowrl.rl').rl.Policy('VGF', 8, 3)",
        TypeError,
        ["VGF: a stage is a value such as Budget(3, step_size), got 3"],
    ),
    "a name for a policy's budget": (
        "__import__('flowrl.rl').rl.Policy('VGF', 8, 'L=3')",
        TypeError,
        ["VGF: a stage is a value such as Budget(steps, step_size) or Best(), got 'L=3'."],
    ),
    "budgets of a clone": (
        "__import__('flowrl.rl').rl.measure_budgets(flowrl.rl.baselines.make('bc'), None, None, Budget(1),"
        " steps=(1,), step_sizes=(0.1,), key=None)",
        TypeError,
        ["BC has no values by which budgets could be measured"],
    ),
    # Selection
    "values of other shape": ("flowrl.best_of_n(x, jnp.ones(3))", ValueError, ["(3,)", "(4,)"]),
    "values of many sets": ("flowrl.best_of_n(jnp.ones((2, 4, 3)), jnp.ones((2, 4)))", ValueError, ["(2, 4)", "vmap"]),
}

RUNNER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
space = {}
exec(sys.argv[2], space)
for call in json.load(sys.stdin):
    try:
        eval(call, space)
        answer = ["nothing", [], ""]
    except Exception as error:
        answer = [type(error).__name__, [base.__name__ for base in type(error).__mro__], str(error)]
    print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answers():
    """The error of every call, from one fresh process that treats warnings as errors."""
    calls = [call for call, _, _ in CASES.values()]
    command = [sys.executable, "-W", "error", "-c", RUNNER, json.dumps([str(ROOT)]), PRELUDE]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_misuse_is_refused_in_words(name, answers):
    call, kind, words = CASES[name]
    got, bases, message = answers[name]
    assert kind.__name__ in bases, f"{call} gave {got}: {message}"
    missing = [word for word in words if word not in message]
    assert not missing, f"{call} says {message!r}, without {missing}"
    assert "Traceback" not in message
