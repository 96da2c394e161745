"""Stands for `genreward train` where a test is about the sweep: same flags, folders, files and exit codes, no learning.

It counts: each step adds to a sum that depends on all steps before it, and every fifth step is a checkpoint. What it
does besides is in a JSON file, its first argument, by seed: {"0": {"kill_at": 12, "exit": 2, "pause": 0.05}}.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from genreward_fast.commands.train import train
from genreward_fast.files import read_json, write_json
from genreward_fast.training.checkpoint import RunLock


def main(plans: Path, arguments: list[str]) -> int:
    context = train.make_context("train", list(arguments))
    out, resume = context.params["out"], context.params["resume"]
    if resume:
        settings = read_json(out / "config.json")
    else:
        out.mkdir(parents=True, exist_ok=True)
        settings = {name: context.params[name] for name in ("steps", "seed")} | {"watcher": os.getppid()}
    plan = read_json(plans).get(str(settings["seed"]), {})
    if "exit" in plan:
        print(f"genreward: refused, status {plan['exit']}", file=sys.stderr)
        return plan["exit"]
    with RunLock(out):
        write_json(out / "config.json", settings)
        return count(out, settings, plan)


def count(out: Path, settings: dict, plan: dict) -> int:
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    checkpoint = out / "checkpoint.json"
    state = read_json(checkpoint) if checkpoint.exists() else {"step": 0, "sum": settings["seed"] + 1, "began_at": []}
    state["began_at"].append(state["step"])
    with open(out / "metrics.jsonl", "a") as metrics:
        while state["step"] < settings["steps"]:
            state["step"] += 1
            state["sum"] = (state["sum"] * 31 + state["step"]) % 1_000_003
            record = {"step": state["step"], "episode/return": float(state["step"]), "episode/success": 1.0}
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            if len(state["began_at"]) == 1 and plan.get("kill_at") == state["step"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if stopped or state["step"] % 5 == 0:
                write_json(checkpoint, state)
            if stopped:
                print("genreward: stopped with a checkpoint", file=sys.stderr)
                return 128 + stopped[0]
            time.sleep(plan.get("pause", 0))
    evaluation = {"return_mean": float(state["sum"]), "success": 0.5}
    summary = {"env_steps": state["step"], "steps_per_second": 9.0, "evaluation": evaluation}
    write_json(out / "summary.json", summary | {"sum": state["sum"], "began_at": state["began_at"]})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
