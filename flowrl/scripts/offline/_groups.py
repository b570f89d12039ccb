"""Options of an offline run, in groups: an algorithm has those groups of which it reads every option."""

import dataclasses
import os
from pathlib import Path
from typing import ClassVar, Literal

from flowrl import Budget
from flowrl.rl import (
    VGF,
    AbstractAlgorithm,
    AbstractGenerative,
    Barycentre,
    Cool,
    EliteMean,
    Policy,
    RandomDirections,
    Uniform,
)


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from."""

    env: str = "halfcheetah-medium-local-v0"
    """Environment: {halfcheetah,walker2d}-medium[-replay]-local-v0, an OGBench single task such as
    puzzle-3x3-play-singletask-task1-v0, d4rl:NAME, minari:ID, gym:ID with --dataset-path; a wrong name lists near
    ones."""
    origin: Literal["local", "published"] | None = None
    """Generate the data here, or download what the benchmark's authors made; default: generate where possible."""
    data_dir: Path | None = None
    """Where generated data are kept; default: the user's cache directory."""
    dataset_path: Path | None = None
    """A data file to use instead: npz in the layout of the environment's family, D4RL's HDF5, or your own arrays."""
    rewards: Literal["auto", "none", "unit_std", "d4rl_locomotion", "antmaze"] = "auto"
    """Reward protocol; auto: unit_std where returns are scored, none where success is."""
    rows: int = 100_000
    """Rows of generated training data."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, and on which returns, every algorithm is trained."""

    steps: int = 10_000
    """Updates of the critic (of the policy, where there is no critic)."""
    interval: int = 1_000
    """Updates per compiled call; a checkpoint follows each."""
    seed: int = 0
    """Seed of the networks and of all sampling in training."""
    discount: float = 0.99
    """Discount factor."""
    n_step: int = 5
    """Steps of the n-step return. With one step, ten thousand updates are too few for values to reach back far."""
    chunk: int = 1
    """Actions taken at once, over which the return is summed (env)."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Which episodes are played."""

    eval_episodes: int = 16
    """Episodes of every policy at the end, the same for all; 0 trains without acting."""
    eval_seed: int = 1
    """Seed of the evaluation's episodes."""
    curve_points: int = 1
    """Evaluations along the way, for the learning curve."""
    curve_episodes: int = 4
    """Episodes of each policy in those."""
    video: int = 0
    """Episodes to draw of one policy (of the budget --chosen), as policy.gif (with MUJOCO_GL=egl or osmesa)."""
    lanes: int = 40
    """Environments stepped in lockstep (env)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the run is kept, and who works on it."""

    out: Path = Path("runs/offline_rl")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines training must be the same."""
    log: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Send the metrics to a tracker too; the CSV files are always written."""
    workers: int = os.cpu_count() or 1
    """Processes for data and environments."""


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Acting without a critic: one sample of the policy is all there is."""

    #: Index of the policy that the table compares with.
    baseline: ClassVar[int] = 0

    def policies(self, label: str, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List the ways to act, decided before anything is evaluated."""
        del learner
        return (Policy(f"{label} (one sample)", 1),)


@dataclasses.dataclass(frozen=True)
class ProposalOptions(SampleOptions):
    """Acting with a policy without randomness, whose one proposal can be transported along the critic."""

    test_steps: tuple[int, ...] = (1, 3)
    """All L_test to report (env)."""
    test_step_size: float = 0.3
    """Step size in test, in units of the action."""
    chosen: int = 1
    """The L_test, fixed in advance, that a video shows (env)."""
    bandit_episodes: int = 0
    """Episodes to spend, before the others, on finding the best L_test, or consensus, by acting (sequential halving);
    0: none."""

    def policies(self, label: str, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List the ways to act, decided before anything is evaluated."""
        return (Policy(label, 1), *self._transported(label, learner, 1))

    def _transported(self, label: str, learner: AbstractAlgorithm, candidates: int) -> tuple[Policy, ...]:
        name = f"{label}, transported L={{}}"
        return tuple(Policy(name.format(n), candidates, self.budget(learner, n)) for n in self.test_steps)

    def budget(self, learner: AbstractAlgorithm, steps: int) -> Budget:
        """Return the test budget of L steps."""
        del learner
        return Budget(steps, self.test_step_size)


@dataclasses.dataclass(frozen=True)
class CandidateOptions(ProposalOptions):
    """Acting with the best of N proposals, as they are or transported along the critic."""

    particles: int = 8
    """N: candidates per state; best-of-N and every transported policy choose among N, a consensus is of 4N."""
    consensus: float = 0.5
    """Temperature of the consensus in the noise of the proposals, in standard deviations of their values."""
    push: float = 0.03
    """Size of the one step along the critic that follows the consensus, in units of the action."""

    def policies(self, label: str, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List the ways to act, decided before anything is evaluated."""
        n = self.particles
        own = (Policy(f"{label} (one proposal)", n, Uniform()), Policy(f"best-of-{n}", n))
        return (*own, *self._transported(label, learner, n), *self._shrunk(label, learner))

    def _shrunk(self, label: str, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List what 4N candidates can do in the noise that they are decoded from, controls first."""
        n = 4 * self.particles
        if not isinstance(learner, AbstractGenerative):
            return ()
        consensus, push = Barycentre(self.consensus), self.budget(learner, 1).with_steps(1, self.push)
        name = f"consensus {self.consensus:g} of {n}"
        return (
            Policy(f"best-of-{n}", n),
            Policy(f"colder noise, best-of-{n}", n, Cool(0.5)),
            Policy(f"mean noise of the {self.particles} best of {n}", n, EliteMean(self.particles)),
            Policy(name, n, consensus),
            Policy(f"{name}, {label} L=1 of {self.push:g}", n, (consensus, push)),
        )


@dataclasses.dataclass(frozen=True)
class FlowOptions(CandidateOptions):
    """Acting by transport, with the controls that tell what it adds."""

    test_step_size: float = 0.3
    """Step size in test, in units of the reference's within-state spread."""
    chosen: int = 1
    """The L_test, fixed in advance, that the controls are matched to and that a video shows (env)."""
    push: float = 0.1
    """Size of the one step that follows the consensus, in units of the reference's within-state spread."""

    baseline: ClassVar[int] = 1  # selection alone

    def policies(self, label: str, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List the ways to act, decided before anything is evaluated."""
        assert isinstance(learner, VGF)
        n, chosen = self.particles, self.budget(learner, self.chosen)
        return (
            Policy("BC (one random particle)", n, Uniform()),
            Policy(f"best-of-{n} (L=0)", n),
            *(Policy(f"{label} L={steps}", n, self.budget(learner, steps)) for steps in self.test_steps),
            Policy(f"one random transported particle, L={self.chosen}", n, (chosen, Uniform())),
            Policy(f"random directions, same length as L={self.chosen}, best", n, RandomDirections(chosen)),
            *self._shrunk(label, learner),
        )

    def budget(self, learner: AbstractAlgorithm, steps: int) -> Budget:
        """Return the training budget at L steps: what training has (a temperature, a cap), acting has."""
        assert isinstance(learner, VGF)
        return learner.train_budget.with_steps(steps, self.test_step_size)
