"""How a program ends: one line and the right exit status, whatever ends it."""

import io
import os
import re
import signal

import pytest
import rich.console

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


# How far a program is, in a log file


def logged(calls, *, pause=30.0):
    """The lines of a loop that begins at second 0 with a total of 100, and of its calls (second, done, fields)."""
    now, lines = [0.0], []
    bars = console.Lines(lines.append, pause=pause, clock=lambda: now[0])
    task = bars.add_task("main (updates)", total=100, rate="")
    for now[0], done, fields in calls:
        bars.update(task, completed=done, **fields)
    return lines


def test_a_log_has_a_line_at_most_every_thirty_seconds_and_one_at_the_end():
    lines = logged([(second, second, {}) for second in range(1, 101)])
    assert lines == [
        "main (updates): 1 of 100 (1%), 1/s, 0:00:01 so far, 0:01:39 left",
        "main (updates): 31 of 100 (31%), 1/s, 0:00:31 so far, 0:01:09 left",
        "main (updates): 61 of 100 (61%), 1/s, 0:01:01 so far, 0:00:39 left",
        "main (updates): 91 of 100 (91%), 1/s, 0:01:31 so far, 0:00:09 left",
        "main (updates): 100 of 100 (100%), 1/s, 0:01:40 so far",
    ]


def test_a_loop_that_knows_its_rate_says_it():
    assert logged([(0.0, 0, {}), (50.0, 100, {"rate": "2,000 updates/s"})]) == [
        "main (updates): 0 of 100 (0%)",
        "main (updates): 100 of 100 (100%), 2,000 updates/s, 0:00:50 so far",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals_and_lines_for_files(terminal):
    file = io.StringIO()
    screen = rich.console.Console(file=file, force_terminal=terminal, width=100)
    with console.progress(screen) as bars:
        show = console.bar(bars, "evaluation [x] (episodes)")
        for done in range(11):
            show(done, 10)
    text = file.getvalue()
    assert ("\x1b[" in text) == terminal
    if not terminal:
        first, last = text.splitlines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d evaluation \[x\] \(episodes\): 0 of 10 \(0%\)", first)
        assert "10 of 10 (100%)" in last
