"""The line that says how far a loop is, on a terminal and in a log file."""

import pytest

from flowrl.runs import progress_line


@pytest.mark.parametrize(
    ("terminal", "written"),
    [
        (
            True,
            "\rdata: 0 of 2,000\rdata: 100 of 2,000, 100,000 per second\rdata: 1,000 of 2,000, 0.5 per second  "
            "\rdata: 2,000 of 2,000, 1,000 per second\n",
        ),
        (
            False,
            "data: 0 of 2,000\ndata: 1,000 of 2,000, 0.5 per second\ndata: 2,000 of 2,000, 1,000 per second\n",
        ),
    ],
)
def test_a_terminal_has_one_line_and_a_log_file_a_line_per_tenth(monkeypatch, capsys, terminal, written):
    now = iter((5.0, 5.001, 2005.0, 7.0))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    show = progress_line("data")
    for done in (0, 100, 1000, 2000):
        show(done, 2000)
    assert capsys.readouterr().err == written
