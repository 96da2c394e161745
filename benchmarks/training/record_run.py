"""Keeps the figures of a finished `genreward train` as a result file, for the README's table of runs.

usage: python benchmarks/training/record_run.py RUN --label TEXT --json benchmarks/results/train_NAME.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.training.run_folder import RunFolder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--label", required=True, help="what the run was, in a few words")
    parser.add_argument("--json", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    folder = RunFolder(options.run)
    try:
        summary, config = read_json(folder.summary), read_json(folder.config)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(options.json, {"label": options.label} | summary | {"config": config})
    return 0


if __name__ == "__main__":
    sys.exit(main())
