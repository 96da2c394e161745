"""The agent's update, one optimisation after the other: what it was predicted to take, what it took, how exact it is.

python benchmarks/agent/waterfall.py add --name "one flat optimiser" --predicted "22-23"    # measures the code as it is
python benchmarks/agent/waterfall.py parity --name "one flat optimiser"                     # its exactness alone

The entries are in benchmarks/results/agent_waterfall.json; `python benchmarks/readme_tables.py` draws them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genreward_fast.bench.agent import timed
from genreward_fast.bench.contestant import Spec
from genreward_fast.bench.ours import config_of
from genreward_fast.bench.parity import UPDATES, parity
from genreward_fast.bench.timing import code_version, device_name
from genreward_fast.files import read_json, write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "agent_waterfall.json"


def exactness(spec: Spec, updates: int) -> dict[str, Any]:
    """The parity of the code as it is, in bfloat16 and in float32, without the list of all losses."""
    result: dict[str, Any] = {}
    for dtype in ("bfloat16", "float32"):
        found = parity(config_of(replace(spec, dtype=dtype)), torch.device(spec.device), updates)
        result[dtype] = {name: found[name] for name in ("updates", "worst", "policy", "parameters")}
        largest = max((n for n in found["losses"] if n != "loss/policy"), key=found["losses"].__getitem__)
        print(f"{dtype}: worst loss {largest}, {found['worst']:.2e}; policy loss {found['policy']:.2e} (absolute)")
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("add", "parity"))
    parser.add_argument("--name", required=True, help="what was done, in a few words")
    parser.add_argument("--predicted", default="", help="milliseconds or a range of them, said before measuring")
    parser.add_argument("--file", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="12M")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-length", type=int, default=64)
    parser.add_argument("--imagination", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring")
    parser.add_argument("--updates", type=int, default=UPDATES, help="over which the parity is taken")
    parser.add_argument(
        "--commit", default=code_version(Path(__file__).parent), help="whose code it is  [default: this checkout's]"
    )
    parser.add_argument("--plain", action="store_true", help="without a CUDA graph")
    options = parser.parse_args(arguments)
    spec = Spec(
        size=options.size,
        batch_size=options.batch_size,
        batch_length=options.batch_length,
        imagination=options.imagination,
        device=options.device,
        seconds=options.seconds,
        acting=(),
        capture=not options.plain,
    )
    record = read_json(options.file) if options.file.exists() else {"entries": []}
    entries = record["entries"]
    if options.command == "parity":
        found = [entry for entry in entries if entry["name"] == options.name]
        if not found:
            print(f"no entry is called {options.name!r}", file=sys.stderr)
            return 2
        found[-1]["parity"] = exactness(spec, options.updates)
    else:
        result = timed("ours", spec)
        if "error" in result:
            print(f"not measured: {result['error']}", file=sys.stderr)
            return 1
        print(f"{options.name}: {result['update ms']:.2f} ms, predicted {options.predicted or 'nothing'}")
        entries.append(
            {
                "name": options.name,
                "predicted ms": options.predicted,
                "measured ms": result["update ms"],
                "parity": exactness(spec, options.updates),
                "commit": options.commit,
                "device": device_name(torch.device(options.device)),
                "torch": torch.__version__,
            }
        )
    write_json(options.file, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
