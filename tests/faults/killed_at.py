"""Runs a program that kills itself by SIGKILL at its n-th change of the file system.

    python killed_at.py COUNT_FILE N PROGRAM ARGUMENTS...
    python killed_at.py COUNT_FILE N -m MODULE ARGUMENTS...

The changes are what writing is made of: a file that is synced, renamed, linked or removed. N = 0 lets the program end,
and writes the number of changes to COUNT_FILE, so that N can be drawn from a whole run.
"""

import atexit
import os
import pathlib
import runpy
import signal
import sys

count_file, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
changes = 0


def counted(function):
    def change(*arguments, **options):
        global changes
        changes += 1
        # Before every other change, and after the rest: both sides of each are moments to die at.
        if changes == at and at % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if changes == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return change


for name in ("fsync", "replace", "link", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
atexit.register(lambda: count_file.write_text(str(changes)))
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
