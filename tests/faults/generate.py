"""Make a data set: `python generate.py NAME FOLDER ROWS VALIDATION_ROWS WORKERS`."""

import sys

from flowrl.rl import data

if __name__ == "__main__":
    name, folder, rows, val_rows, workers = sys.argv[1:]
    print(data.generate(name, folder, rows=int(rows), val_rows=int(val_rows), workers=int(workers)))
