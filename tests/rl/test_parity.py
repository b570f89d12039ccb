"""One update of the `reference` preset against the numbers of the authors' agent (tests/rl/vectors/README.md)."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowrl
from flowrl.nn import MLP
from flowrl.rl import Critic, FlowMatching, Mean, Minimum, critic_loss, presets, reference_loss, td_target

VECTORS = Path(__file__).parent / "vectors" / "reference_vgf.npz"
OBS, ACT, HIDDEN = 5, 3, (16, 16)


@pytest.fixture(scope="module")
def vectors():
    with np.load(VECTORS, allow_pickle=False) as file:
        return dict(file)


def network(template: MLP, vectors, prefix: str) -> MLP:
    """Fill a network with the dumped parameters."""
    layers = range(len(template.layers))
    norms = range(len(template.norm_scale))
    leaves = [vectors[f"{prefix}/dense{i}/{what}"] for i in layers for what in ("kernel", "bias")]
    leaves += [vectors[f"{prefix}/norm{i}/scale"] for i in norms] + [vectors[f"{prefix}/norm{i}/bias"] for i in norms]

    def where(m: MLP) -> list:
        dense = [x for layer in m.layers for x in (layer.weight, layer.bias)]
        return dense + ([*m.norm_scale, *m.norm_shift] if norms else [])

    for old, new in zip(where(template), leaves, strict=True):
        assert old.shape == new.shape
    return eqx.tree_at(where, template, [jnp.asarray(x) for x in leaves])


def setting(vectors, case: str):
    key = jax.random.key(0)
    critic = Critic(OBS, ACT, HIDDEN, 2, key=key)
    critics = [
        eqx.tree_at(lambda c: c.members, critic, network(critic.members, vectors, f"{case}/{name}"))
        for name in ("critic", "target_critic")
    ]
    reference = FlowMatching(3).init(OBS, ACT, HIDDEN, key=key)
    reference = eqx.tree_at(lambda r: r.field, reference, network(reference.field, vectors, f"{case}/bc"))
    return *critics, reference


def transported(vgf, critic, observation, particles, save=None):
    return vgf.transport(vgf._direction(critic, None, observation), particles, vgf.train_budget, save=save, throw=False)


@pytest.mark.parametrize("case", ["min", "mean"])
@pytest.mark.thorough
def test_one_update_agrees_with_the_authors(vectors, case):
    v = {name.removeprefix(f"{case}/"): jnp.asarray(x) for name, x in vectors.items()}
    critic, target_critic, reference = setting(vectors, case)
    vgf = presets.authors(2, 0.05, 0.5, particles=4, target=Minimum() if case == "min" else Mean(), hidden=HIDDEN)
    states = v["batch/next_observations"]

    start = jax.vmap(lambda s, z: jax.vmap(lambda x: reference.sample(s, x))(z))(states, v["particle_noise"])
    np.testing.assert_allclose(start, v["reference_samples"], atol=1e-5)

    flow = jax.vmap(lambda s, a: transported(vgf, critic, s, a, (0, 1, 2)))(states, start)
    np.testing.assert_allclose(flow.trajectory.swapaxes(0, 1), v["particles"], atol=1e-5)

    y = td_target(
        target_critic,
        vgf.target,
        vgf.particle_aggregate,
        v["batch/rewards"],
        0.99 * v["batch/masks"],
        states,
        flow.particles,
    )
    np.testing.assert_allclose(y, v["td_target"], atol=1e-5)
    loss = critic_loss(critic, v["batch/observations"], v["batch/actions"], y)
    np.testing.assert_allclose(loss, v["critic_loss"], rtol=1e-5)
    bc = reference_loss(reference, v["batch/observations"], v["batch/actions"], v["bc_x0"], v["bc_t"][:, 0])
    np.testing.assert_allclose(bc, v["bc_loss"], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("case", ["min", "mean"])
@pytest.mark.parametrize("through_bandwidth", [True, False])
def test_the_bandwidth_switch_is_what_differs(vectors, case, through_bandwidth):
    """Their direction phi = v/α of the first step; without the gradient through the median it is far off."""
    v = {name.removeprefix(f"{case}/"): jnp.asarray(x) for name, x in vectors.items()}
    critic, *_ = setting(vectors, case)
    vgf = presets.authors(1, 1.0, 0.5, through_bandwidth=through_bandwidth)
    # A free Euler step of size 1 shows the velocity itself.
    vgf = eqx.tree_at(lambda g: g.transport, vgf, flowrl.Transport(vgf.transport.flow, flowrl.Euler()))
    start = v["reference_samples"]
    flow = jax.vmap(lambda s, a: transported(vgf, critic, s, a))(v["batch/next_observations"], start)
    phi = (flow.particles - start) / 0.5
    error = np.abs(np.asarray(phi - v["phi"][0])).max()
    assert error < 1e-5 if through_bandwidth else error > 0.3


@pytest.mark.thorough
def test_the_paper_preset_is_the_cold_kernelised_flow():
    vgf = presets.paper(3, 0.2)
    assert isinstance(vgf.transport.flow, flowrl.SVGD)
    assert isinstance(vgf.transport.solver, flowrl.Euler)
    assert float(vgf.train_budget.temperature) == 0
    critic = Critic(OBS, ACT, HIDDEN, 2, key=jax.random.key(1))
    state = jnp.ones(OBS, jnp.float32)
    actions = 0.3 * jax.random.normal(jax.random.key(2), (5, ACT), jnp.float32)
    got = transported(vgf, critic, state, actions).particles

    value = lambda a: float(jnp.mean(critic(state, a)))
    assert value(got[0]) > value(actions[0])
    x = np.asarray(actions, np.float64)
    for _ in range(3):
        gradient = np.asarray(
            jax.vmap(jax.grad(lambda a: jnp.mean(critic(state, a))))(jnp.asarray(x, jnp.float32)), np.float64
        )
        squared = ((x[:, None] - x[None]) ** 2).sum(-1)
        median = np.median(squared[~np.eye(5, dtype=bool)])
        x = np.clip(x + 0.2 * np.exp(-squared / (2 * median)) @ gradient / 5, -1, 1)
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_presets_refuse_unknown_fields():
    with pytest.raises(TypeError, match="no fields"):
        presets.default(particels=3)
