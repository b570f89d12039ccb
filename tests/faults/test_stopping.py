"""How a program ends: one line and the right exit status, whatever ends it."""

import os
import signal

import pytest

from flowrl.scripts import _console as console


@pytest.fixture(autouse=True)
def _handlers():
    """Those of a program at a terminal: one that was started in the background may ignore Ctrl-C."""
    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler))
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    def main():
        os.kill(os.getpid(), number)
        signal.pause()

    return main


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("resumed", [True, False])
def test_a_stopped_program_says_the_command_that_goes_on(tmp_path, capsys, number, status, begun, resumed):
    words = ["flowrl", "offline", "--out", "a b", *(["--resume"] if resumed else [])]
    if begun:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        console.end_well(send(number), words, tmp_path)
    assert ended.value.code == status
    tail = " --resume" if begun or resumed else ""
    assert capsys.readouterr().err == f"stopped; to go on: flowrl offline --out 'a b'{tail}\n"


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def main():
        os.kill(os.getpid(), signal.SIGTERM)
        return 3

    with pytest.raises(SystemExit) as ended:
        console.end_well(main, [])
    assert ended.value.code == 3


def fail():
    raise FloatingPointError("diverged before update 7")


def test_errors_are_one_line():
    with pytest.raises(SystemExit, match=r"^FloatingPointError: diverged before update 7$"):
        console.end_well(fail, [])
    with pytest.raises(SystemExit) as ended:
        console.end_well(lambda: "rows", [])
    assert ended.value.code == 0
