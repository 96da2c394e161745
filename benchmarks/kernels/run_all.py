"""Runs the benchmarks of all kernels, each in a process of its own, and keeps their numbers for the README.

python benchmarks/kernels/run_all.py --folder benchmarks/results
python benchmarks/kernels/run_all.py --only twohot laprop -- --rows 64 1024

What follows "--" is given to each of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / "results", help="where kernel_NAME.json goes")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="some of them")
    given = sys.argv[1:] if arguments is None else arguments
    end = given.index("--") if "--" in given else len(given)
    options, passed = parser.parse_args(given[:end]), given[end + 1 :]
    if not options.folder.is_dir():
        print(f"run_all: {options.folder} is no folder; make it, or name another with --folder", file=sys.stderr)
        return 2
    failed, begin = [], time.monotonic()
    for number, name in enumerate(options.only, 1):
        target = options.folder / f"kernel_{name}.json"
        command = [sys.executable, str(HERE / f"bench_{name}.py"), "--json", str(target), *passed]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - begin
        left = seconds / number * (len(options.only) - number)
        print(f"\n{name}: {number} of {len(options.only)}, {seconds:.0f} s, about {left:.0f} s left", flush=True)
        print(done.stdout.rstrip(), flush=True)
        if done.returncode:
            failed.append(name)
            print((done.stderr.strip().splitlines() or ["it says nothing"])[-1], file=sys.stderr, flush=True)
    if failed:
        print(f"run_all: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
