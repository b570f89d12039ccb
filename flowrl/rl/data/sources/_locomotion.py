"""Locomotion data that are made on this machine; a user's file (`dataset_path`) has the keys of `Transitions`."""

import dataclasses
from pathlib import Path

from flowrl._io import read_npz
from flowrl.rl.data.files import validation_path
from flowrl.rl.data.generators import LOCOMOTION, describe, generate_locomotion, make_mujoco
from flowrl.rl.data.schema import AbstractLocalSource, OfflineDataset, ReferenceScores, Request, from_dict
from flowrl.rl.envs import Environment


class Locomotion(AbstractLocalSource):
    """D4RL-style locomotion data."""

    env_names = tuple(LOCOMOTION)
    dataset_names = tuple(LOCOMOTION)

    def load(self, name: str, request: Request) -> OfflineDataset:
        if request.origin == "published":
            raise ValueError(f"{name} is made on this machine and was never published; leave out origin.")
        if request.validation is not None:
            raise ValueError(f"{name} has a validation split of its own; leave out validation.")
        path = request.dataset_path or self.generate(name, request)
        files = (path, validation_path(path))
        train, validation = (from_dict(read_npz(file), source=str(file)) for file in files)
        info = describe(path, name, LOCOMOTION[name], rows=len(train), success_timing=None, metric=self.metric)
        return OfflineDataset(train, validation, dataclasses.replace(info, val_rows=len(validation)))

    def generate(self, name: str, request: Request) -> Path:
        return generate_locomotion(name, request)

    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        return make_mujoco(LOCOMOTION[name], seed=seed, render=render)

    def reference_scores(self, name: str) -> ReferenceScores | None:  # noqa: ARG002
        return None
