"""Calls every verb of offline RL with each of its arguments of a wrong kind, and says which errors are not our own.

    python tests/rl/wrong_kinds.py

An error of our own is raised by a `raise` of flowrl, as a ValueError, TypeError or FileNotFoundError.
"""

import json
import pathlib
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import flowrl
from flowrl.rl import (
    VGF,
    Agent,
    Barycentre,
    Buffer,
    Collector,
    Cool,
    EliteMean,
    FlowMatching,
    Histogram,
    HostBuffer,
    Improve,
    Lanes,
    LowerConfidence,
    Policy,
    PolicyTable,
    RandomDirections,
    ReferenceLearner,
    Softmax,
    Standardizer,
    baselines,
    choose_budget,
    data,
    evaluate,
    fit,
    make_replay,
    measure_budgets,
)
from flowrl.rl.learning import presets

HERE = pathlib.Path(flowrl.__file__).parent
rng = np.random.default_rng(0)
KEY = jax.random.key(0)
ARRAYS = {
    "observations": rng.normal(size=(60, 3)).astype(np.float32),
    "actions": rng.uniform(-1, 1, (60, 2)).astype(np.float32),
    "rewards": rng.normal(size=60).astype(np.float32),
    "terminals": np.zeros(60, bool),
    "timeouts": np.arange(60) % 20 == 19,
}
DATASET = data.from_arrays(ARRAYS)
STANDARDIZER = Standardizer.fit(DATASET.train.observations)
REPLAY = make_replay(DATASET.train, STANDARDIZER, discount=0.99)
ALGORITHM = presets.default(hidden=(8,), samples=8, reference=ReferenceLearner(hidden=(8,), updates=10))
STATE = ALGORITHM.init(3, 2, key=KEY)
AGENT = Agent(ALGORITHM, STATE, STANDARDIZER)
POLICY = Policy("best", 8)
BUDGET = flowrl.Budget(1, 0.1)
PENDULUM = "gym:Pendulum-v1"
LANES = Lanes(PENDULUM, 1, workers=1)


def opened(**options: Any) -> None:
    Lanes(**options).close()


GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "make_replay": (make_replay, {"data": DATASET.train, "standardizer": STANDARDIZER, "discount": 0.99, "n_step": 1,
                                  "chunk": 1, "reward_scale": 1.0}),
    "Standardizer.fit": (Standardizer.fit, {"observations": DATASET.train.observations, "protocol": "standard"}),
    "Agent": (Agent, {"algorithm": ALGORITHM, "state": STATE, "standardizer": STANDARDIZER, "chunk": 1}),
    "agent": (AGENT, {"observation": np.zeros(3), "key": KEY, "policy": POLICY}),
    "Policy": (Policy, {"name": "best", "candidates": 8, "stages": BUDGET}),
    "PolicyTable": (PolicyTable, {"policies": (POLICY,), "lanes": 2}),
    "fit": (fit, {"algorithm": ALGORITHM, "replay": REPLAY, "updates": 2, "interval": 3, "key": KEY}),
    "from_arrays": (data.from_arrays, {"arrays": ARRAYS, "env": None, "validation": 0.1, "seed": 0, "ignore": ()}),
    "load_arrays": (data.load_arrays, {"path": "/nowhere.npz", "ignore": (), "seed": 0}),
    "load": (data.load, {"env_name": PENDULUM, "dataset_path": "/nowhere.npz", "rows": 100, "seed": 0}),
    "metric": (data.metric, {"env_name": PENDULUM}),
    "reference_scores": (data.reference_scores, {"env_name": PENDULUM}),
    "make_env": (data.make_env, {"env": PENDULUM, "seed": 0}),
    "generate": (data.generate, {"name": "nothing", "rows": 100}),
    "download": (data.download, {"name": "nothing"}),
    "apply_protocol": (data.apply_protocol, {"dataset": DATASET, "rewards": "none"}),
    "Lanes": (opened, {"env_name": PENDULUM, "size": 1, "workers": 1, "timeout": 1.0, "start_timeout": 1.0}),
    "evaluate": (evaluate, {"agent": AGENT, "policies": (POLICY,), "lanes": LANES, "episodes": 0, "seed": 0}),
    "Collector": (Collector, {"lanes": LANES, "standardizer": STANDARDIZER, "discount": 0.99, "n_step": 1,
                              "rewards": DATASET.info.reward_transform, "seed": 0}),
    "measure_budgets": (measure_budgets, {"algorithm": ALGORITHM, "state": STATE, "replay": REPLAY, "budget": BUDGET,
                                          "steps": (1,), "step_sizes": (0.1,), "candidates": 4, "states": 1,
                                          "pessimism": 1.0, "key": KEY}),
    "choose_budget": (choose_budget, {"measured": ()}),
    "Buffer": (Buffer, {"replay": REPLAY, "capacity": 10, "protocol": "rlpd"}),
    "HostBuffer": (HostBuffer, {"replay": REPLAY, "capacity": 10, "protocol": "rlpd"}),
    "Improve": (Improve, {"budget": BUDGET}),
    "RandomDirections": (RandomDirections, {"budget": BUDGET}),
    "Softmax": (Softmax, {"temperature": 0.1}),
    "Barycentre": (Barycentre, {"temperature": 0.1}),
    "EliteMean": (EliteMean, {"elites": 2}),
    "Cool": (Cool, {"factor": 0.5}),
    "presets.default": (presets.default, {"steps": 1, "step_size": 0.1, "particles": 4, "hidden": (8,)}),
    "presets.authors": (presets.authors, {"steps": 1, "step_size": 0.1, "learning_rate": 1e-3}),
    "baselines.make": (baselines.make, {"name": "iql", "batch_size": 8, "polyak": 0.1}),
    "ReferenceLearner": (ReferenceLearner, {"model": FlowMatching(5), "hidden": (8,), "updates": 10,
                                            "learning_rate": 1e-3, "average": 0.0}),
    "FlowMatching": (FlowMatching, {"steps": 5}),
    "LowerConfidence": (LowerConfidence, {"kappa": 1.0}),
    "Histogram": (Histogram, {"low": 0.0, "high": 1.0, "bins": 11}),
}  # fmt: skip
JUNK = [None, "x", -1, 2.5, float("nan"), [], {}, object(), np.ones((2, 2)), DATASET, ALGORITHM, KEY, VGF, b"x", 1j]
OWN = (ValueError, TypeError, FileNotFoundError)


def own(error: Exception) -> bool:
    """Whether it was raised in words of ours."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, OWN) and HERE in pathlib.Path(frame.filename).parents and "raise" in (frame.line or "")


def main() -> None:
    leaks, calls = [], 0
    for name, (function, good) in GOOD.items():
        for argument in good:
            for junk in JUNK:
                if junk is VGF and argument in ("env", "model"):
                    continue  # a function that makes something, as far as can be seen; what it says is its own
                calls += 1
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        function(**good | {argument: junk})
                except Exception as error:
                    if not own(error):
                        leaks.append(f"{name}({argument}={junk!r:.30}): {type(error).__name__}: {error!s:.150}")
    LANES.close()
    print(json.dumps({"calls": calls, "leaks": leaks}))


if __name__ == "__main__":
    main()
