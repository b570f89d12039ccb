"""The VGF authors' agent from a checkout, and its networks in ours."""

import contextlib
import copy
import os
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl.rl import Standardizer, VGFState, make_replay
from flowrl.rl.data import Transitions

OBSERVATION, ACTION, ROWS = 37, 5, 20_000


def load(reference, packages):
    """Import the authors' agents; returns their module.

    Args:
        reference: folder of the checkout.
        packages: folder with flax, ml_collections and distrax if they are not installed, or None.
    """
    if reference is None:
        raise SystemExit("this part needs --vgf-reference PATH (or --fql-reference), a checkout of the authors' code.")
    # Behind everything else: their packages must not replace the jax of this environment.
    sys.path += [str(reference)] + ([str(packages)] if packages else [])
    try:
        import agents
    except ImportError as error:
        raise SystemExit(f"{reference}: {error}; give its packages by --vgf-packages PATH.") from error
    return agents


def config(name, **changes):
    """Return the authors' configuration with changes."""
    module = sys.modules[{"vgf": "agents.vgf", "avgf": "agents.a_vgf"}[name]]
    values = module.get_config()
    values.update(changes)
    return values


def agent(agents, name, width, layers, steps, **changes):
    """Make the authors' agent."""
    hidden = (width,) * layers
    sizes = {"value_hidden_dims": hidden, "actor_hidden_dims": hidden, "train_vgf_steps": steps, "bc_flow_steps": 10}
    settings = config(name, **sizes, **changes)
    example = np.zeros((1, OBSERVATION), np.float32), np.zeros((1, ACTION), np.float32)
    return agents.agents[name].create(0, *example, copy.deepcopy(settings))


def data(rows=ROWS, only=None):
    """Make random transitions, ours and the authors' data set of the same numbers; or `only` "ours" or "theirs"."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(rows, OBSERVATION)).astype(np.float32)
    actions = rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    ends = (np.arange(rows) % 200 == 199).astype(np.float32)
    replay = None
    if only != "theirs":
        transitions = Transitions(observations, actions, ends, np.roll(observations, -1, 0), np.ones_like(ends), ends)
        replay = make_replay(transitions, Standardizer.fit(observations, "none"), discount=0.99)
    if only == "ours":
        return replay, None
    fields = {
        "observations": observations,
        "actions": actions,
        "rewards": ends.copy(),
        "masks": np.ones_like(ends),
        "terminals": ends.copy(),
        "next_observations": np.roll(observations, -1, 0),
    }
    return replay, fields


def same_networks(state: VGFState, theirs) -> VGFState:
    """Return our state with the authors' parameters."""

    def fill(template, params):
        dense = [params[f"Dense_{i}"] for i in range(len(template.layers))]
        leaves = [leaf for layer in dense for leaf in (layer["kernel"], layer["bias"])]
        norms = [params[f"LayerNorm_{i}"] for i in range(len(template.norm_scale))]
        leaves += [norm["scale"] for norm in norms] + [norm["bias"] for norm in norms]

        def where(m):
            affine = [x for layer in m.layers for x in (layer.weight, layer.bias)]
            return affine + ([*m.norm_scale, *m.norm_shift] if norms else [])

        return eqx.tree_at(where, template, [jnp.array(x) for x in leaves])

    members = fill(state.critic.network.members, theirs.critic.params["value_net"])
    slow = fill(state.target_critic.members, theirs.target_critic.params["value_net"])
    field = fill(state.reference.model.network.field, next(iter(theirs.actor_bc.params.values())))
    return eqx.tree_at(
        lambda s: (s.critic.network.members, s.target_critic.members, s.reference.model.network.field),
        state,
        (members, slow, field),
    )


@contextlib.contextmanager
def quiet():
    """Silence the authors' progress bars."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def fresh(algorithm, key=None):
    """Return a state of ours before the first update."""
    return algorithm.init(OBSERVATION, ACTION, key=jr.key(0) if key is None else key)


def arrays(tree):
    """Return the arrays that a computation must have finished."""
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
