"""The console command `flowrl`, also `python -m flowrl.scripts`: long programs, one subcommand for each."""

from flowrl.scripts._cli import main as main
