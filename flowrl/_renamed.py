"""Names that a module does not hold: those of 0.1 are an error that says the new one, some rooms are imported then."""

import importlib
import sys
from collections.abc import Callable, Collection
from types import ModuleType

#: Old name to new name, both with their module.
RENAMED = {
    "flowrl.Field": "flowrl.TargetView",
    "flowrl.March": "flowrl.SolverOutput",
    "flowrl.rl.Acted": "flowrl.rl.Decision",
    "flowrl.rl.Asked": "flowrl.rl.PendingActions",
    "flowrl.rl.Finished": "flowrl.rl.FinishedEpisode",
    "flowrl.rl.Halved": "flowrl.rl.HalvingResult",
    "flowrl.rl.Stepped": "flowrl.rl.StepResult",
    "flowrl.rl.Tracker": "flowrl.runs.Tracker",
    "flowrl.rl.baselines.DiffusionQL": "flowrl.rl.baselines.diffusion_ql",
    "flowrl.rl.baselines.DiffusionPolicy": "flowrl.rl.DiffusionPolicy",
    "flowrl.rl.baselines.DiffusionQLState": "flowrl.rl.baselines.GenerativeQLState",
    "flowrl.rl.baselines.First": "flowrl.rl.First",
    "flowrl.rl.baselines.FlowQL": "flowrl.rl.baselines.flow_ql",
    "flowrl.rl.baselines.FlowQLState": "flowrl.rl.baselines.GenerativeQLState",
    "flowrl.rl.baselines.TD3BC": "flowrl.rl.baselines.td3_bc",
    "flowrl.rl.data.Reference": "flowrl.rl.data.ReferenceScores",
    "flowrl.rl.data.Request": "flowrl.rl.data.schema.Request",
    "flowrl.rl.data.Source": "flowrl.rl.data.schema.AbstractSource",
    "flowrl.rl.data.reference": "flowrl.rl.data.reference_scores",
    "flowrl.rl.presets.reference": "flowrl.rl.presets.authors",
    "flowrl.rl.report.scores": "flowrl.rl.Evaluation.scores",
    "flowrl.rlhf.optimise": "flowrl.rlhf.ppo_update",
}


def old_names(module: str, rooms: Collection[str] = ()) -> Callable[[str], ModuleType]:
    """Create the `__getattr__` of a module that once had other names.

    Args:
        module: its public name, such as "flowrl.rl".
        rooms: modules in it that are imported when they are first asked for.
    """

    def find(name: str) -> ModuleType:
        if name in rooms:
            return importlib.import_module(f"{module}.{name}")
        new = RENAMED.get(f"{module}.{name}")
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        words = f"{module}.{name} is called {new} now; CHANGELOG.md lists all renamed names."
        # `from flowrl import March` asks by hasattr first, and would drop the words of an AttributeError.
        imported = sys._getframe(1).f_code.co_name == "_handle_fromlist"
        raise (ImportError if imported else AttributeError)(words)

    return find
