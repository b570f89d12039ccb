"""One update of Flow Q-Learning beside its authors' agent."""

import sys

import jax
import numpy as np
import theirs
from rounds import append, ratio, rounds, timing
from vgf import CASES

from flowrl.rl import train
from flowrl.rl.learning.baselines import FQL


def update(reference, packages, count, cases):
    """Measure one update; their networks have GELUs where ours have ReLUs."""
    agents = theirs.load(reference, packages)
    from utils.datasets import Dataset

    replay, fields = theirs.data()
    data_set = Dataset.create(**fields)
    for case in cases:
        width, batch, updates = CASES[case]
        hidden = (width,) * 4
        settings = sys.modules["agents.fql"].get_config()
        settings.update({"value_hidden_dims": hidden, "actor_hidden_dims": hidden, "batch_size": batch})
        example = np.zeros((1, theirs.OBSERVATION), np.float32), np.zeros((1, theirs.ACTION), np.float32)
        algorithm = FQL(hidden=hidden, batch_size=batch)
        states = {"flowrl": theirs.fresh(algorithm), "authors": agents.agents["fql"].create(0, *example, settings)}

        def ours(algorithm=algorithm, updates=updates, states=states):
            states["flowrl"], metrics = train(algorithm, states["flowrl"], replay, updates)
            return metrics

        def authors(batch=batch, updates=updates, states=states):
            for _ in range(updates):
                # As in their loop: a batch is drawn on the host for every update.
                states["authors"], info = states["authors"].update(data_set.sample(batch))
            return [states["authors"].rng, jax.tree.leaves(info)]

        measured = rounds({"flowrl": ours, "authors": authors}, count, 60)
        rows = []
        for name, bars in (("flowrl", ratio(measured["authors"], measured["flowrl"])), ("authors", {})):
            row = {"case": case, "width": width, "batch": batch, "updates": updates, "method": name}
            row |= timing(measured[name], updates)
            rows.append(row | {"ratio": "", "lower90": ""} | bars)
        append("fql", rows)
