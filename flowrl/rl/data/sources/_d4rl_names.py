"""The D4RL tasks that are known here: their files, widths, time limits, environments and reference scores.

Files, time limits and reference scores are those of D4RL's own tables: `d4rl/infos.py` and the `__init__.py` of its
families at github.com/Farama-Foundation/D4RL (Fu et al. 2020, arXiv 2004.07219).
"""

import dataclasses
from typing import Any, Literal

from flowrl.rl.data.schema import ReferenceScores

_SOURCE = "d4rl/infos.py, github.com/Farama-Foundation/D4RL"

#: Mean return of a random policy and of an expert, by the first word of a task's name.
REFERENCES: dict[str, ReferenceScores] = {
    "halfcheetah": ReferenceScores(-280.178953, 12135.0, _SOURCE),
    "hopper": ReferenceScores(-20.272305, 3234.3, _SOURCE),
    "walker2d": ReferenceScores(1.629008, 4592.3, _SOURCE),
    "antmaze": ReferenceScores(0.0, 1.0, _SOURCE),
    "pen": ReferenceScores(96.262799, 3076.8331017826877, _SOURCE),
}

_OFFICIAL = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
# D4RL's own addresses are not encrypted; tried last, and for files whose SHA-256 is known.
_OFFICIAL_PLAIN = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main"


@dataclasses.dataclass(frozen=True)
class Task:
    """One data set of D4RL.

    Attributes:
        family: decides how its flags are read, and where policies are evaluated.
        path: of the file below the official address.
        widths: of observations and of actions.
        max_steps: time limit of an episode.
        reference: for normalised scores.
        env_id: gymnasium id of the nearest environment there is today; empty if none is near enough.
        env_options: for making it.
        env_note: how it differs from D4RL's, or why there is none.
    """

    family: Literal["locomotion", "antmaze", "pen"]
    path: str
    widths: tuple[int, int]
    max_steps: int
    reference: ReferenceScores
    env_id: str
    env_options: dict[str, Any]
    env_note: str

    @property
    def file(self) -> str:
        """Return the name of the file."""
        return self.path.rsplit("/", 1)[-1]

    def urls(self, mirrors: tuple[str, ...]) -> tuple[str, ...]:
        """Return the addresses of the file: the user's mirrors (flat folders), or else the public ones."""
        official = (f"{_OFFICIAL}/{self.path}", f"{_MIRROR}/{self.file}", f"{_OFFICIAL_PLAIN}/{self.path}")
        return tuple(f"{mirror.rstrip('/')}/{self.file}" for mirror in mirrors) or official


_LOCOMOTION_NOTE = (
    "evaluated in {env_id} of gymnasium on today's MuJoCo; D4RL's scores were measured in the -v2 environment on "
    "MuJoCo 2, so the two are near but not the same"
)
_ANT_NOTE = (
    "no environment here: D4RL's ant has other torques (30, not 150), another time step (0.02 s, not 0.01 s) and other "
    "contacts than gymnasium's, and its mazes another origin and orientation than gymnasium-robotics'. Evaluate where "
    "d4rl runs, or learn from Minari's antmaze data or OGBench's, which have environments"
)
_PEN_NOTE = (
    "evaluated in AdroitHandPen-v1 of gymnasium-robotics with D4RL's time limit (100 steps), ended when the pen drops "
    "as D4RL does, on today's MuJoCo; near D4RL's environment but not the same"
)


def _tasks() -> dict[str, Task]:
    """Return name to task."""
    found: dict[str, Task] = {}
    for env, env_id, widths, options in (
        ("halfcheetah", "HalfCheetah-v5", (17, 6), {}),
        ("hopper", "Hopper-v5", (11, 3), {}),
        # Version 5 gave the right foot the friction of the left one; the data are from before.
        ("walker2d", "Walker2d-v5", (17, 6), {"xml_file": "walker2d.xml"}),
    ):
        for kind in ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert"):
            path = f"gym_mujoco_v2/{env}_{kind.replace('-', '_')}-v2.hdf5"
            note = _LOCOMOTION_NOTE.format(env_id=env_id)
            task = Task("locomotion", path, widths, 1000, REFERENCES[env], env_id, options, note)
            found[f"d4rl:{env}-{kind}-v2"] = task
    for kind, size, starts, goals in (
        ("umaze", "u-maze", False, False),
        ("umaze-diverse", "u-maze", True, True),
        ("medium-play", "big-maze", True, False),
        ("medium-diverse", "big-maze", True, True),
        ("large-play", "hardest-maze", True, False),
        ("large-diverse", "hardest-maze", True, True),
    ):
        path = f"ant_maze_v2/Ant_maze_{size}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        steps = 700 if kind.startswith("umaze") else 1000
        found[f"d4rl:antmaze-{kind}-v2"] = Task(
            "antmaze", path, (29, 8), steps, REFERENCES["antmaze"], "", {}, _ANT_NOTE
        )
    for kind in ("human", "cloned", "expert"):
        found[f"d4rl:pen-{kind}-v1"] = Task(
            "pen",
            f"hand_dapg_v1/pen-{kind}-v1.hdf5",
            (45, 24),
            100,
            REFERENCES["pen"],
            "AdroitHandPen-v1",
            {"max_episode_steps": 100},
            _PEN_NOTE,
        )
    return found


#: By name, such as "d4rl:hopper-medium-v2".
TASKS: dict[str, Task] = _tasks()
