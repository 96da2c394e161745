"""The goals of the runs, for the page."""

from __future__ import annotations

import hashlib
from typing import Any

from genreward_fast.files import read_json
from genreward_fast.training.report.page import data_url
from genreward_fast.training.report.runs import Run

_MAX_VIDEO = 4 << 20


def goals_of(runs: list[Run]) -> list[dict[str, Any]]:
    """The goals of the runs, each once."""
    goals = {}
    for run in runs:
        folder = run.folder.goal
        if not (folder / "goal.json").exists():
            continue
        description, video, sheet = read_json(folder / "goal.json"), folder / "goal.mp4", folder / "contact_sheet.png"
        provenance = description.get("provenance", {})
        key = hashlib.sha256(video.read_bytes()).hexdigest() if video.exists() else str(folder)
        small = video.exists() and video.stat().st_size <= _MAX_VIDEO
        goals[key] = {
            "text": description.get("text", ""),
            "source": provenance.get("source", "unknown source"),
            "note": provenance.get("note", ""),
            "video": data_url(video) if small else None,
            "sheet": data_url(sheet) if sheet.exists() else None,
        }
    return list(goals.values())
