"""What is wrong with an option is said by its name, whatever part of the library refuses it."""

import dataclasses
import math
from pathlib import Path

import pytest

from flowrl.scripts import behaviour, offline, online, posterior
from flowrl.scripts.experiments._matrix import Matrix, cells
from flowrl.scripts.offline._algorithms import NAMES

BAD = (-1, 0, 1, math.nan, math.inf, -0.5)


def groups(config):
    for group in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, group.name)):
            yield group.name, getattr(config, group.name)


def wrong(config):
    """Yield each number of a configuration with each bad value, as name, value and the configuration that has it."""
    for place, group in groups(config):
        for field in dataclasses.fields(group):
            usual = getattr(group, field.name)
            several = isinstance(usual, tuple)
            if isinstance(usual, bool) or not isinstance(usual[0] if several and usual else usual, int | float):
                continue
            whole = isinstance(usual[0] if several else usual, int)
            for value in (x for x in BAD if not whole or (math.isfinite(x) and x == int(x))):
                given = (value,) if several else value
                other = dataclasses.replace(group, **{field.name: given})
                yield field.name, given, dataclasses.replace(config, **{place: other})


def unnamed(check, config):
    """Return what is refused without the name of its option, and how many values were refused and taken."""
    found, refused, taken = [], 0, 0
    for name, value, options in wrong(config):
        try:
            check(options)
            taken += 1
        except (ValueError, SystemExit) as error:
            refused += 1
            if f"--{name.replace('_', '-')}" not in str(error):
                found.append(f"--{name} {value}: {error}")
    return found, refused, taken


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", NAMES)
def test_every_number_of_an_offline_run_is_refused_by_its_name(algorithm):
    found, refused, taken = unnamed(offline.check, offline.parse([algorithm]))
    assert found == []
    assert refused > 20
    assert taken > 5


@pytest.mark.parametrize("algorithm", ["vgf", "iql"])
def test_every_number_of_an_online_run_is_refused_by_its_name(algorithm):
    offline_run = offline.parse([algorithm])
    learner = offline_run.learner()

    def check(config):
        online.check(config)
        online.check_plan(config, offline_run, learner)

    found, refused, _ = unnamed(check, online.make_config(algorithm, offline=Path("nowhere")))
    assert found == []
    assert refused > 20


@pytest.mark.parametrize("program", [posterior, behaviour])
def test_every_number_of_a_flat_program_is_refused_by_its_name(program):
    @dataclasses.dataclass(frozen=True)
    class Whole:
        options: object

    found, refused, _ = unnamed(lambda whole: program.check(whole.options), Whole(program.Config()))
    assert found == []
    assert refused > 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--consensus 0", "--consensus 0.0: "),
        ("--test-step-size -1", "--test-step-size -1.0: "),
        ("--lanes 2", "--lanes 2: "),
        ("--train-steps -1 --polyak 3", "--train-steps -1: "),
        ("--no-frozen-reference", "--no-frozen-reference: VGF: relative budgets"),
        ("iql --expectile 1.5", "--expectile 1.5: "),
        ("--members 1 --aggregate lower", "--aggregate lower is of several critics"),
        ("fql --members 1 --aggregate min", "--aggregate min is of several critics"),
        ("--reference gaussian --reference-steps 7", "--reference-steps are of a flow"),
        ("--samples 9 --no-frozen-reference --no-relative", "--samples are of a frozen reference"),
    ],
)
def test_an_error_begins_with_the_option_that_it_is_about(words, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        offline.check(offline.parse(words.split()))


def test_one_critic_needs_no_aggregate():
    offline.check(offline.parse(["--members", "1"]))


def test_a_cell_of_a_matrix_is_refused_before_any_is_run():
    with pytest.raises(ValueError, match="--consensus 0.0: temperature"):
        cells(Matrix(), ("--consensus", "0"))
