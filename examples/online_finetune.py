"""From offline to online: a policy trained on data goes on learning by acting, with selection alone beside it.

Trains VGF on data first. Then, twice from the same weights, experience is collected in four environments and learned
from along with the data: once by the transported policy (L_collect = 1), once by the best of eight proposals (0).
At the end all agents play the same episodes. The same command goes on after a stop. `flowrl online` has all options.
"""

import argparse
import math
import os
import shlex
import signal
import sys
from pathlib import Path

import jax.random as jr
import numpy as np

from flowrl import rl
from flowrl.rl import Plan, Policy, data, report
from flowrl.runs import RunDirectory, progress_line, require, to_csv


def main(options: argparse.Namespace) -> None:
    """Train offline, go on by acting in two ways, and compare."""
    require("gymnasium", "matplotlib", extra="rl,examples")
    vgf = rl.presets.small(
        data.metric(options.env), batch_size=256, reference=rl.ReferenceLearner(updates=options.offline_steps)
    )
    # Budgets of test and of the collection; the step size is in units of the reference's within-state spread.
    flows = (Policy(f"VGF L={n}", 8, vgf.train_budget.with_steps(n, 0.3)) for n in (1, 3))
    policies = (Policy("best-of-8 (L=0)", 8), *flows)
    collecting = {"flow": policies[1], "selection": policies[0]}

    dataset = data.load(options.env, rows=100_000, val_rows=10_000, progress=progress_line("data (episodes)"))
    metric, reference = dataset.info.metric, dataset.info.reference
    rewards = "none" if metric == "success" else "unit_std"
    dataset = data.apply_protocol(dataset, rewards=rewards)
    standardizer = rl.Standardizer.fit(dataset.train.observations)
    training = rl.make_replay(dataset.train, standardizer, discount=0.99, n_step=5)
    # Experience is treated as the data are.
    returns = {"discount": 0.99, "n_step": 5, "rewards": dataset.info.reward_transform}

    def learned_offline() -> rl.VGFState:
        """Train offline, or read the state of the training that is done."""
        with _directory(options, "offline") as run:
            return rl.fit(
                vgf,
                training,
                updates=options.offline_steps,
                interval=math.gcd(options.offline_steps, 1_000),
                key=jr.key(options.seed),
                run=run,
                progress=lambda now: show[now.phase](now.done, now.total),
            )

    show = {phase: progress_line(f"offline, {phase} (updates)") for phase in ("reference", "main")}
    agents = {"offline": rl.Agent(vgf, learned_offline(), standardizer)}
    workers = os.cpu_count() or 1
    with rl.Lanes(options.env, 4, workers=1) as acting, rl.Lanes(options.env, 20, workers=workers) as lanes:
        for name, policy in collecting.items():
            # A state of its own: training takes over the arrays that it is given.
            state, replay = vgf.prepare(learned_offline(), training, key=jr.key(options.seed))
            advance = progress_line(f"online, {name} (environment steps)")
            with _directory(options, name) as run:
                state = rl.finetune(
                    lambda step, policy=policy: Plan(vgf, policy),  # noqa: ARG005
                    state,
                    rl.Buffer(replay, options.steps, "prefilled"),
                    rl.Collector(acting, standardizer, **returns, seed=options.seed),
                    steps=options.steps,
                    interval=4 * math.gcd(options.steps // 4, 250),
                    run=run,
                    progress=lambda now, advance=advance: advance(now.done, now.total),
                )
            agents[f"online, collected by {name}"] = rl.Agent(vgf, state, standardizer)

        named, measured = [], []
        for name, agent in agents.items():
            shown = progress_line(f"evaluation, {name} (episodes)")
            measured.append(rl.evaluate(agent, policies, lanes, episodes=options.eval_episodes, seed=1, progress=shown))
            named += [Policy(f"{name}: {p.name}", p.candidates, p.stages) for p in policies]
    both = rl.Evaluation(*(np.concatenate(parts) for parts in zip(*measured, strict=True)))
    rows = report.summarise(tuple(named), both, metric, baseline=named[0].name, reference=reference)
    title = f"{options.env}: {dataset.info.rows:,} rows, then {options.steps:,} steps"
    unit = "success, %" if metric == "success" else "return" if reference is None else "normalised score"
    (options.out / "results.csv").write_text(to_csv(report.episode_rows(tuple(named), both)))
    print(f"{title}\n\n{report.table(rows, unit, named[0].name)}\n\neverything is in {options.out}")


def _directory(options: argparse.Namespace, name: str) -> RunDirectory:
    """Open the directory of a part of the run, and go on with what is there."""
    path = options.out / name
    identity = {key: getattr(options, key) for key in ("env", "seed", "offline_steps", "steps")}
    return RunDirectory(path, identity, resume=(path / "config.json").exists())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="halfcheetah-medium-local-v0", help="(default: %(default)s)")
    parser.add_argument("--offline-steps", type=int, default=8_000, help="updates first (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--eval-episodes", type=int, default=20, help="of every policy (default: %(default)s)")
    parser.add_argument("--out", type=Path, default="runs/online_finetune", help="(default: %(default)s)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by the system ends the run as Ctrl-C does
    try:
        main(parser.parse_args())
    except KeyboardInterrupt:
        sys.exit(f"stopped; to go on: python {shlex.join(sys.argv)}")
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
