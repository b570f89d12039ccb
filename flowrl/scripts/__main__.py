"""Run the console command by `python -m flowrl.scripts`."""

from flowrl.scripts import main

if __name__ == "__main__":
    main()
