"""Rewrites the tables of README.md and docs/, and the picture of the agent's waterfall, from benchmarks/results/.

Run it after a benchmark has written one.

usage: python benchmarks/readme_tables.py [--check]

--check changes nothing, and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from genreward_fast.files import atomic_path
from genreward_fast.training.statistics import wilson_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "pictures" / "agent_waterfall.png"


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
    """Each kernel, and each of its gradients and variants, beside the same in other ways."""
    body, device = [], ""
    for name, result in read("kernel_*.json"):
        op, device = result["op"], result["limits"]["device"]
        shapes: dict[str, list[dict[str, Any]]] = {}
        for entry in result["results"]:
            shapes.setdefault(entry.get("shape") or f"{entry['rows']} rows", []).append(entry)
        for shape, entries in shapes.items():
            variants = [entry["variant"] for entry in entries]
            starts = [i for i, v in enumerate(variants) if v == op or f"{v}, reference" in variants]
            for start, end in zip(starts, [*starts[1:], len(entries)]):
                ours, *peers = entries[start:end]
                label = f"`{op}`" if ours["variant"] == op else f"`{op}`, {ours['variant']}"
                others = "; ".join(f"{peer_name(peer['variant'])} {1000 * peer['ms']:.0f}" for peer in peers)
                time, share = f"{1000 * ours['ms']:.1f}", f"{ours['% of limit']:.0f}"
                body.append([label, shape, ours["dtype"], time, others, share, f"`{name}`"])
    header = [f"**Kernels** on {device}", "shape", "dtype", "µs", "the same in plain PyTorch, µs", "% of limit", "file"]
    return rows(header, body)


def peer_name(variant: str) -> str:
    """How a peer is called beside the kernel that it is measured with."""
    return variant.rpartition(", ")[2] if variant.endswith(("reference", "reference compiled")) else variant


def agent_table() -> str:
    """The agent's update and its acting, ours and others'."""
    columns = {
        "update ms": "update 16×64, ms",
        "% of limit": "% of limit",
        "act 1 ms": "act 1, ms",
        "act 16 ms": "act 16, ms",
        "steps/s": "steps/s",
        "steps/s with environments": "steps/s, Meta-World",
        "peak GB": "peak GB",
        "cold start s": "cold start, s",
        "warm start s": "warm start, s",
    }
    body, remarks, device = [], [], ""
    for name, result in read("agent_*.json"):
        if "results" not in result:  # the waterfall
            continue
        device = f"{result['device']}, torch {result['torch']}"
        for entry in result["results"]:
            who = entry.get("name") or ("ours, one CUDA graph" if entry["captured"] else "ours, plain")
            if "error" in entry:
                remarks.append(f"{who}, {entry['size']}: not timed, {entry['error']}")
                continue
            cells = [number(entry[column]) if column in entry else "" for column in columns]
            body.append([who, entry["size"], entry["dtype"], *cells, f"`{name}`"])
            remarks += [f"{who}, {entry['size']}: {note}" for note in entry.get("notes", [])]
    if not body:
        return ""
    table = rows([f"**Agent** on {device}", "size", "dtype", *columns.values(), "file"], body)
    listed = "\n".join(f"- {remark}" for remark in dict.fromkeys(remarks))
    return "\n\n".join([table, listed] if listed else [table])


def encoders_table() -> str:
    """Each encoder and shape of its inputs: the library's module, ours, and engines."""
    columns = {
        "TFLOP/s": "TFLOP/s",
        "% of limit": "% of the dtype's limit",
        "peak GB": "peak GB",
        "first s": "first result, s",
    }
    body, remarks, device = [], [], ""
    for name, result in read("encoder_*.json"):
        device = f"{result['limits']['device']}, torch {result['torch']}, {result['dtype']}, {result['weights']}"
        for entry in result["results"]:
            label = f"{entry['encoder']} {entry['shape']}"
            if "error" in entry:
                remarks.append(f"- {label}, {entry['name']}: not timed, {entry['error']}")
                continue
            times = f"{number(entry['ms'])} ({number(entry['p10 ms'])} to {number(entry['p90 ms'])})"
            cells = [number(entry[column]) if column in entry else "" for column in columns]
            error = f"{entry['relative error']:.1e}"
            body.append([label, entry["name"], times, *cells, error, f"`{name}`"])
    if not body:
        return ""
    header = [f"**Encoders** on {device}", "", "ms (10% to 90%)", *columns.values(), "relative error", "file"]
    return "\n\n".join([rows(header, body), *(["\n".join(dict.fromkeys(remarks))] if remarks else [])])


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def parallel_table() -> str:
    """Updates on several GPUs."""
    body, device = [], ""
    for name, result in read("parallel_*.json"):
        device = f"{result['device']}, torch {result['torch']}"
        body += [
            [
                entry["name"].removeprefix("ours, "),
                entry["size"],
                f"{entry['batch each']}",
                f"{entry['update ms']:.2f}",
                f"{entry['alone ms']:.2f}",
                f"{100 * entry['efficiency']:.0f}",
                f"`{name}`",
            ]
            for entry in result["results"]
        ]
    header = ["size", "sequences each", "update, ms", "one GPU, ms", "efficiency, %", "file"]
    return rows([f"**Data parallelism** on {device}", *header], body) if body else ""


def learn_table() -> str:
    """Runs that show that the agent learns."""
    body = []
    for name, result in read("learn_*.json"):
        found = result["evaluation"]
        interval = f"{100 * found['success_low']:.0f} to {100 * found['success_high']:.0f}"
        body.append(
            [
                result["task"],
                result["device"],
                f"{result['seconds'] / 60:.1f}",
                f"{result['env_steps']}",
                f"{result['updates']}",
                f"{100 * found['success']:.0f} ({interval})",
                f"{found['return_mean']:.0f} ± {found['return_std']:.0f}",
                f"`{name}`",
            ]
        )
    header = ["**Learning** from pixels, dense reward", "device", "minutes", "steps", "updates"]
    return rows([*header, "success over 20 episodes, % (95%)", "return", "file"], body) if body else ""


def waterfall() -> dict[str, Any]:
    return json.loads((RESULTS / "agent_waterfall.json").read_text())


def fidelity(entry: dict[str, Any]) -> str:
    """The worst loss's relative error in bfloat16 and float32."""
    parity = entry["parity"]
    return f"{parity['bfloat16']['worst']:.1e} / {parity['float32']['worst']:.1e}" if parity else "not measured"


def waterfall_table() -> str:
    """One optimisation a row, and the picture of them."""
    body = [
        [
            entry["name"],
            entry["predicted ms"] or "–",
            f"{entry['measured ms']:.1f}",
            fidelity(entry),
            entry["device"],
            f"`{entry['commit']}`",
        ]
        for entry in waterfall()["entries"]
    ]
    header = ["**One update**, step by step", "predicted, ms", "measured, ms", "error of the losses, bf16 / float32"]
    picture = f"![the agent's update, step by step]({PICTURE.relative_to(ROOT)})"
    return f"{picture}\n\n{rows([*header, 'device', 'commit'], body)}"


def draw_waterfall(path: Path) -> None:
    """A bar for each step with its time, the target as a line, and the errors beside it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    record = waterfall()
    entries = record["entries"]
    figure = Figure(figsize=(10, 0.9 + 0.42 * len(entries)), dpi=130)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.33, 0.6 / figure.get_figheight(), 0.47, 1 - 1.05 / figure.get_figheight()))
    places = range(len(entries))
    times = [entry["measured ms"] for entry in entries]
    colors = ["#8b949e"] + ["#2a6fbb"] * (len(entries) - 1)
    axis.barh(places, times, color=colors, height=0.62)
    axis.set_xscale("log")
    axis.set_xlim(1, 2.2 * max(times))
    axis.set_yticks(places, [entry["name"] for entry in entries], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds an update (logarithmic)", fontsize=8)
    axis.axvline(record["target ms"], color="#2f9e60", linewidth=1, linestyle="--")
    above = axis.get_xaxis_transform()
    axis.text(record["target ms"], 1.02, f"target {record['target ms']:g}", transform=above, fontsize=8, ha="center")
    beside = axis.get_yaxis_transform()
    axis.text(1.03, 1.02, "error of the losses\nbf16 / float32", transform=axis.transAxes, fontsize=8, va="bottom")
    for place, entry in zip(places, entries):
        predicted = f"  (predicted {entry['predicted ms']})" if entry["predicted ms"] else ""
        text = f"{entry['measured ms']:.1f}{predicted}"
        inside = entry["measured ms"] > 100
        where = entry["measured ms"] * (0.95 if inside else 1.05)
        color = "white" if inside else "#24292f"
        axis.text(where, place, text, va="center", ha="right" if inside else "left", fontsize=8, color=color)
        axis.text(1.03, place, fidelity(entry), transform=beside, va="center", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="x", labelsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Description": digest()})


def digest() -> str:
    """Of what the picture shows."""
    return hashlib.sha256(json.dumps(waterfall(), sort_keys=True).encode()).hexdigest()


def picture_is_current() -> bool:
    from PIL import Image

    if not PICTURE.exists():
        return False
    with Image.open(PICTURE) as image:
        return image.info.get("Description") == digest()


def fb_meaning_table() -> str:
    """Spearman's correlation and AUC of r_FB by features, replay and variant, in a column for each task."""
    ((_, result),) = read("fb_meaning.json")
    tasks = result["tasks"]
    body: dict[tuple[str, str, str], list[str]] = {}
    for task in tasks.values():
        for entry in task["figures"]:
            cells = body.setdefault((entry["features"], entry["replay"], entry["variant"]), [])
            cells.append(f"{entry['spearman']:+.2f} / {entry['auc']:.2f}")
    header = ["features", "FB's replay", "next action, features seen", *tasks]
    return rows(header, [[*names, *cells] for names, cells in body.items()])


def assets_table() -> str:
    """What the tiny weights show on held-out episodes, beside what is asked."""
    results = [result for _, result in read("assets.json")]
    if not results:
        return "Not built yet."
    header = ["on held-out episodes", "shown", "asked"]
    body = [[row["what"], f"{row['value']:.3g}", f"≥ {row['asked']:g}"] for row in results[0]["table"]]
    return rows(header, body)


def ranking_table() -> str:
    """AUCs of the video level between kinds of windows, as it is and with latents centred in time."""
    results = [result for _, result in read("assets.json")]
    if not results:
        return "Not built yet."
    names = {"expert_over_half": "expert over half-expert", "half_over_random": "half-expert over random"}
    names |= {"expert_over_random": "expert over random"}
    body = [
        [task, *(f"{found[name]:.2f} / {found[f'centred_{name}']:.2f}" for name in names)]
        for task, found in results[0]["ranking"].items()
    ]
    return rows(["AUC, as it is / centred", *names.values()], body)


def latency_table() -> str:
    """Ours and other ways, milliseconds for a step and for a window of all environments together."""
    body, device = [], ""
    for name, result in read("latency_*.json"):
        note = f", {result['note']}" if result["note"] else ""
        device = f"{result['device']}, torch {result['torch']}, preset {result['preset']}{note}"
        for entry in result["results"]:
            times = [number(entry[f"{percentile} ms"]) for percentile in ("p50", "p95", "p99")]
            body.append([entry["way"], str(entry["envs"]), entry["unit"], entry["part"], *times, f"`{name}`"])
    header = [f"**Latency** on {device}", "environments", "unit", "part", "p50, ms", "p95, ms", "p99, ms", "file"]
    return rows(header, body) if body else "Not measured yet."


def cost_table() -> str:
    """What the generated reward adds to training, and the parts of a step in a column for each kind of run."""
    tables = []
    for name, result in read("cost_*.json"):
        note = f", {result['note']}" if result["note"] else ""
        title = f"on {result['device']}, torch {result['torch']}, preset {result['preset']}{note}, `{name}`"
        body = [
            [
                f"{entry['envs']}",
                entry["run"],
                *(number(entry[key]) for key in ("steps/s", "ms per step", "overhead %")),
            ]
            for entry in result["speeds"]
        ]
        header = ["environments", "run", "steps/s", "ms a step", "wall time added, %"]
        tables.append(f"**Training** {title}:\n\n{rows(header, body)}")
        parts: dict[str, dict[str, str]] = {}
        for entry in result["parts"]:
            run = f"{entry['run']}, {entry['envs']} environments"
            parts.setdefault(entry["part"], {})[run] = f"{entry['ms per step']:.2f}"
        runs = list(dict.fromkeys(run for values in parts.values() for run in values))
        body = [[part, *(values.get(run, "") for run in runs)] for part, values in parts.items()]
        tables.append(rows(["**Parts** of a step, each waited for, ms", *runs], body))
    return "\n\n".join(tables) or "Not measured yet."


def signal_table() -> str:
    """How often rewards put episodes in the right order, by task; and why some were not measured."""
    results = [result for _, result in read("signal.json")]
    if not results:
        return "Not run yet."
    rewards, tasks = results[0]["rewards"], results[0]["tasks"]
    body, remarks = [], []
    for name, entry in rewards.items():
        if "error" in entry:
            remarks.append(f"- `{name}`: not measured on {len(tasks) - len(entry['tasks'])} tasks: {entry['error']}")
        if entry["tasks"]:
            cells = [aucs(entry["tasks"][task]) if task in entry["tasks"] else "" for task in tasks]
            body.append([f"`{name}`", entry["weights"], *cells, aucs(entry["mean"])])
    scored = sorted({count for task in tasks.values() for count in task["held_out"].values()})
    episodes = f"{' to '.join(map(str, scored))} episodes of each kind"
    table = rows([f"reward, on {results[0]['device']}; {episodes}", "its weights", *tasks, "mean"], body)
    picture = "![mean AUC of each reward, and its tasks](../../benchmarks/results/signal.png)"
    return "\n\n".join([table, *(["\n".join(remarks)] if remarks else []), picture])


def aucs(figures: dict[str, Any]) -> str:
    """Expert over random, expert over half-expert, half-expert over random."""
    return " / ".join(f"{figures[name]:.2f}" for name in ("expert_over_random", "expert_over_half", "half_over_random"))


def evidence_table() -> str:
    """Each grid of runs: its picture, and a row for each task and cell."""
    found = [(name, result, evidence_rows(result)) for name, result in read("learning/*.json")]
    header = ["cell", "seeds", "steps", "success, % (95%)", "return", "steps/s", "device", "notes"]
    parts = []
    for name, result, body in found:
        picture = f"../benchmarks/results/learning/{Path(name).with_suffix('.png')}"
        said = f"{result['when']}, commit `{result['commit']}`, `{name}`"
        table = rows([f"**{result['name']}**: task", *header], body)
        parts.append(f"![success over steps]({picture})\n\n{table}\n\n{said}")
    return "\n\n".join(parts) or "Not run yet."


def evidence_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each task and cell, with the last evaluation of every seed; episodes of all seeds are pooled."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for trial in result["trials"]:
        groups.setdefault((trial["task"], trial["cell"]), []).append(trial)
    return [[task, cell, *evidence_cells(trials)] for (task, cell), trials in groups.items()]


def evidence_cells(trials: list[dict[str, Any]]) -> list[str]:
    finals = [trial["final"] for trial in trials if trial["final"]]
    steps = sorted({trial["steps"] for trial in trials})
    asked = max(trial["steps asked"] for trial in trials)
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    rated = [final for final in finals if final["success"] is not None]
    success = ""
    if rated:
        count = round(sum(final["episodes"] for final in rated))
        hits = round(sum(final["episodes"] * final["success"] for final in rated))
        low, high = wilson_interval(hits, count)
        success = f"{100 * hits / count:.0f} ({100 * low:.0f} to {100 * high:.0f}, n = {count})"
    returns = [final["return_mean"] for final in finals]
    speeds = [trial["steps/s"] for trial in trials if trial["steps/s"]]
    return [
        ", ".join(str(trial["seed"]) for trial in trials),
        span if steps[0] >= asked else f"{span} of {asked}",
        success,
        f"{sum(returns) / len(returns):.0f}" if returns else "",
        f"{sum(speeds) / len(speeds):.0f}" if speeds else "",
        ", ".join(dict.fromkeys(trial["device"] or "not said" for trial in trials)),
        ", ".join(dict.fromkeys(note for trial in trials for note in trial["notes"])),
    ]


def vit_table() -> str:
    """Products of the image encoders' blocks, and the encoders, with activations inside products and apart."""
    results = [result for _, result in read("vit_paths.json")]
    if not results:
        return "Not measured yet."
    found = results[0]
    body = [
        [entry["what"], entry["path"], f"{entry['ms']:.3g}", f"{entry['relative error']:.1e}"]
        for entry in found["results"]
    ]
    device = f"{found['device']}, torch {found['torch']}, {found['dtype']}, {found['weights']}"
    return rows([f"on {device}", "activation", "ms", "relative error"], body)


def fb_update_table() -> str:
    """An update of the forward-backward representation in three ways."""
    body, device = [], ""
    for name, result in read("fb_update_*.json"):
        device = f"{result['limits']['device']}, torch {result['torch']}"
        body += [
            [entry["variant"], f"{entry['rows']}", entry["products"], number(entry["ms"]), f"`{name}`"]
            for entry in result["results"]
        ]
    header = [f"**An update of FB** on {device}", "rows", "products", "ms", "file"]
    return rows(header, body) if body else "Not measured yet."


def generation_table() -> str:
    """Guided steps, samplings and decoding at full size, one way a row."""
    columns = {"ms": "ms", "TFLOP/s": "TFLOP/s", "% of limit": "% of limit", "peak GiB": "peak GiB"}
    changes = {"difference": "relative RMS", "PSNR dB": "PSNR, dB"}
    return video_model_table("generate_*.json", "Generation", columns | changes)


def finetune_table() -> str:
    """Steps of fine-tuning at full size."""
    columns = {"processes": "GPUs", "ms": "ms", "samples/s": "samples/s", "TFLOP/s": "TFLOP/s each"}
    memory = {"% of limit": "% of limit", "weights to average GiB": "counted, GiB", "peak GiB": "peak, GiB"}
    return video_model_table("finetune_*.json", "Fine-tuning", columns | memory)


def video_model_table(pattern: str, name: str, columns: dict[str, str]) -> str:
    """The results' rows with these of their values; a row that failed says why."""
    body, device = [], ""
    for file, result in read(pattern):
        device = f"{result['limits']['device']}, torch {result['torch']}"
        for entry in result["results"]:
            cells = [plain_cell(entry.get(column, "")) for column in columns]
            what = f"{entry['what']}: {entry['error']}" if entry.get("error") else entry["what"]
            body.append([what, *cells, f"`{file}`"])
    return rows([f"**{name}** on {device}", *columns.values(), "file"], body) if body else "Not measured yet."


def plain_cell(value: float | str) -> str:
    return number(value) if isinstance(value, float) else str(value)


def approximation_table() -> str:
    """What approximations change in videos of the shipped model."""
    results = [result for _, result in read("approximation_tiny.json")]
    if not results:
        return "Not measured yet."
    body = [[plain_cell(value) for value in entry.values()] for entry in results[0]["results"]]
    return rows(list(results[0]["results"][0]), body)


TABLES = {
    "env": env_table,
    "train": train_table,
    "agent": agent_table,
    "parallel": parallel_table,
    "waterfall": waterfall_table,
    "encoders": encoders_table,
    "learn": learn_table,
    "kernels": kernels_table,
}
PAGES = {
    "README.md": TABLES,
    "docs/encoders.md": {"vit": vit_table},
    "docs/frame_level.md": {"fb_meaning": fb_meaning_table, "fb_update": fb_update_table},
    "docs/goals_generation.md": {
        "generation": generation_table,
        "finetune": finetune_table,
        "approximation": approximation_table,
    },
    "docs/assets.md": {"assets": assets_table, "ranking": ranking_table},
    "docs/cost_of_the_reward.md": {"latency": latency_table, "cost": cost_table},
    "docs/rewards/signal.md": {"signal": signal_table},
    "docs/evidence.md": {"evidence": evidence_table},
}


def filled(page: str) -> str:
    """The page with every table between its markers replaced."""
    text = (ROOT / page).read_text()
    for name, table in PAGES[page].items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, t=table: f"{m[1]}\n{t()}\n\n{m[2]}", text, flags=re.S)
        assert count == 1, f"{page} has no place for the table {name}"
    return text


def main() -> int:
    pages = {page: filled(page) for page in PAGES}
    if "--check" in sys.argv[1:]:
        return int(any((ROOT / page).read_text() != text for page, text in pages.items()) or not picture_is_current())
    if not picture_is_current():
        draw_waterfall(PICTURE)
    for page, text in pages.items():
        with atomic_path(ROOT / page) as temporary:
            temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
