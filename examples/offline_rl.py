"""Offline reinforcement learning by Value Gradient Flow, from data to table.

Makes the data on this machine if they are not there, learns a reference policy by flow matching and a critic by TD on
samples of the reference, and evaluates one set of weights in several ways to act, with the controls that tell what a
flow adds. Everything goes to `--out`: metrics.csv, results.csv, two plots, a checkpoint.
`flowrl offline` does the same with all options, and trains other algorithms.
"""

import argparse
import math
import os
import shlex
import signal
import sys
from pathlib import Path

import jax.random as jr

from flowrl import rl
from flowrl.rl import Policy, data, report
from flowrl.runs import RunDirectory, progress_line, require, to_csv


def make_policies(vgf: rl.VGF, lengths: tuple[int, ...], chosen: int) -> tuple[Policy, ...]:
    """List ways to act with one set of weights, decided before anything is evaluated: budgets and their controls."""
    budget = {steps: vgf.train_budget.with_steps(steps, 0.3) for steps in lengths}  # of the reference's spread
    consensus, push = rl.Barycentre(0.5), vgf.train_budget.with_steps(1, 0.1)
    return (
        Policy("BC (one random particle)", 8, rl.Uniform()),
        Policy("best-of-8 (L=0)", 8),
        *(Policy(f"VGF L={steps}", 8, budget[steps]) for steps in lengths),
        Policy(f"one random transported particle, L={chosen}", 8, (budget[chosen], rl.Uniform())),
        Policy(f"random directions, same length as L={chosen}, best", 8, rl.RandomDirections(budget[chosen])),
        Policy("best-of-32", 32),
        Policy("colder noise, best-of-32", 32, rl.Cool(0.5)),
        Policy("mean noise of the 8 best of 32", 32, rl.EliteMean(8)),
        Policy("consensus 0.5 of 32", 32, consensus),
        Policy("consensus 0.5 of 32, VGF L=1 of 0.1", 32, (consensus, push)),
    )


def main(options: argparse.Namespace) -> None:
    """Train and evaluate, or go on with a run that was stopped."""
    require("gymnasium", "matplotlib", extra="rl,examples")
    sparse = data.metric(options.env) == "success"  # otherwise returns are scored
    chunk = 5 if sparse else 1  # actions taken at once: a manipulator that decides at every step gets stuck
    # A reference first; then a critic, from four of its samples per state, not transported (L_train = 0).
    vgf = rl.presets.small(data.metric(options.env))
    policies = make_policies(vgf, *(((1, 3, 5), 5) if sparse else ((1, 3), 1)))
    identity = {"env": options.env, "seed": options.seed, "steps": options.steps, "episodes": options.eval_episodes}
    lanes = rl.Lanes(options.env, 20 if sparse else 40, workers=os.cpu_count() or 1)
    with lanes, RunDirectory(options.out, identity, resume=options.resume, free=["episodes"]) as run:
        dataset = data.load(options.env, rows=100_000, val_rows=10_000, progress=progress_line("data (episodes)"))
        # Dense rewards are brought to unit scale; 0/-1 rewards already are.
        dataset = data.apply_protocol(dataset, rewards="none" if sparse else "unit_std")
        standardizer = rl.Standardizer.fit(dataset.train.observations)
        splits, returns = [dataset.train, dataset.validation], {"discount": 0.99, "n_step": 5, "chunk": chunk}
        training, *held_out = (rl.make_replay(x, standardizer, **returns) for x in splits if x is not None)
        metric, reference = dataset.info.metric, dataset.info.reference

        def measure(state: rl.VGFState, step: int) -> dict[str, float]:
            row = report.held_out_losses(vgf, state, held_out, step)
            if step == options.steps:  # the end has its own evaluation, of all policies
                return row
            found = rl.evaluate(rl.Agent(vgf, state, standardizer, chunk), policies[:4], lanes, episodes=4, seed=0)
            return report.mean_scores(policies[:4], found, metric, reference) | row

        interval = math.gcd(options.steps, 1_000)  # updates per compiled call; a checkpoint follows each
        middle = options.steps // interval // 2 * interval
        shown = {phase: progress_line(f"{phase} (updates)") for phase in ("reference", "main")}
        state = rl.fit(
            vgf,
            training,
            updates=options.steps,
            interval=interval,
            key=jr.key(options.seed),
            run=run,
            evaluate=measure,
            evaluate_at=(*([middle] if middle else []), options.steps),
            progress=lambda now: shown[now.phase](now.done, now.total),
        )
        title = f"{options.env}, {dataset.info.label} data, {dataset.info.rows:,} rows"
        unit = "success, %" if sparse else "return" if reference is None else "normalised score"
        report.plot_learning(run.rows, unit, title, run.path / "learning_curve.png")
        agent, show = rl.Agent(vgf, state, standardizer, chunk), progress_line("evaluation (episodes)")
        measured = rl.evaluate(agent, policies, lanes, episodes=options.eval_episodes, seed=1, progress=show)
        rows = report.summarise(policies, measured, metric, baseline=policies[1].name, reference=reference)
        report.plot_budget(rows, policies, unit, title, run.path / "budget_curve.png")
        run.write("results.csv", to_csv(report.episode_rows(policies, measured)))
    print(f"{title}\n\n{report.table(rows, unit, policies[1].name)}\n\neverything is in {options.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="halfcheetah-medium-local-v0", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10_000, help="updates of the critic (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    parser.add_argument("--eval-episodes", type=int, default=16, help="of every policy (default: %(default)s)")
    parser.add_argument("--out", type=Path, default="runs/offline_rl", help="directory of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by the system ends the run as Ctrl-C does
    try:
        main(parser.parse_args())
    except KeyboardInterrupt:
        sys.exit(f"stopped; to go on: python {shlex.join(word for word in sys.argv if word != '--resume')} --resume")
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
