"""Rewrites the README's tables from the files in benchmarks/results/. Run it after a benchmark has written one.

usage: python benchmarks/readme_tables.py [--check]

--check changes nothing, and exits with 1 if the README is out of date.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from genreward_fast.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(header: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in body])


def read(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content) of the results whose name matches, in the order of their names."""
    return [(path.name, json.loads(path.read_text())) for path in sorted(RESULTS.glob(pattern))]


def env_table() -> str:
    """Environment steps per second by renderer, workers and frames; and where the time of one step goes."""
    results = [result for _, result in read("env_*.json")]
    if not results:
        return ""
    frames = list(dict.fromkeys(entry["frames"] for result in results for entry in result["throughput"]))
    speeds = []
    for result in results:
        for workers in sorted({entry["workers"] for entry in result["throughput"]}):
            by_frames = {e["frames"]: e["steps_per_second"] for e in result["throughput"] if e["workers"] == workers}
            cells = [f"{by_frames[name]:.0f}" if name in by_frames else "" for name in frames]
            speeds.append([renderer(result), str(workers), *cells])
    parts = list(dict.fromkeys(part for result in results for part in result["parts_ms"]))
    times = [
        [part, *(f"{result['parts_ms'][part]:.2f}" if part in result["parts_ms"] else "" for result in results)]
        for part in parts
    ]
    return "\n\n".join(
        [
            rows(["**Environment steps/s**, with frames of (pixels)", "workers", *frames], speeds),
            rows(["**One environment step**, ms (median)", *map(renderer, results)], times),
        ]
    )


def renderer(result: dict[str, Any]) -> str:
    return f"{result['renderer'].split(' (')[0].split('/')[0]}, {result['machine'].replace('(R)', '')}"


def train_table() -> str:
    """What complete runs took, from their summaries."""
    body = [
        [
            result["label"],
            result["device"],
            f"{result['env_steps']}",
            f"{result['updates']}",
            f"{result['steps_per_second']:.1f}",
            f"{result['seconds'] / 60:.1f}",
            ", ".join(result["notes"]) or "trained",
            f"`{name}`",
        ]
        for name, result in read("train_*.json")
    ]
    header = ["**Training**, end to end", "device", "steps", "updates", "steps/s", "minutes", "encoders", "file"]
    return rows(header, body)


def kernels_table() -> str:
    """Each kernel beside eager PyTorch: its reference, and the usual way to write it."""
    body, device = [], ""
    for name, result in read("kernel_*.json"):
        op, device = result["op"], result["limits"]["device"]
        shapes: dict[str, list[dict[str, Any]]] = {}
        for entry in result["results"]:
            shapes.setdefault(entry.get("shape") or f"{entry['rows']} rows", []).append(entry)
        for shape, (ours, *peers) in shapes.items():
            assert ours["variant"] == op
            times = " / ".join(f"{1000 * peer['ms']:.0f}" for peer in peers)
            share = f"{ours['% of limit']:.0f}"
            body.append([f"`{op}`", shape, ours["dtype"], f"{1000 * ours['ms']:.1f}", times, share, f"`{name}`"])
    header = [f"**Kernels** on {device}", "shape", "dtype", "µs", "eager PyTorch: reference / usual, µs", "% of limit"]
    return rows([*header, "file"], body)


def agent_table() -> str:
    """The agent's update and its acting, recorded as CUDA graphs and run plainly."""
    body, device = [], ""
    for name, result in read("agent_*.json"):
        device = f"{result['device']}, torch {result['torch']}"
        for entry in result["results"]:
            body.append(
                [
                    f"{entry['size']}, {entry['dtype']}, " + ("one CUDA graph" if entry["captured"] else "plain"),
                    f"{entry['update ms']:.1f}",
                    f"{entry['% of limit']:.1f}",
                    *(f"{entry[f'act {count} ms']:.2f}" for count in (1, 4, 16)),
                    f"{entry['s to the third']:.1f}",
                    f"`{name}`",
                ]
            )
    header = [f"**Agent** on {device}", "update 16×64, ms", "% of limit", "act 1, ms", "act 4, ms", "act 16, ms"]
    return rows([*header, "s to the third update", "file"], body)


TABLES = {"env": env_table, "train": train_table, "agent": agent_table, "kernels": kernels_table}


def filled(readme: str) -> str:
    """The README with every table between its markers replaced."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        readme, count = re.subn(pattern, lambda m, t=table: f"{m[1]}\n{t()}\n\n{m[2]}", readme, flags=re.S)
        assert count == 1, f"README.md has no place for the table {name}"
    return readme


def main() -> int:
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    with atomic_path(path) as temporary:
        temporary.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
