"""Plain folders of video files with captions beside them.

Captions are looked for in one of three places:

    captions.jsonl   a line each: {"file": "a.mp4", "caption": "pick up the ball"}, or "captions": [several wordings]
    captions.csv     with a header: the columns file and caption; several lines for one file are several wordings
    a.txt            beside a.mp4: each line is one wording

Video files in folders below count too; their names are relative to the folder that is read. Every video needs a
caption.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from genreward_fast.errors import UserError
from genreward_fast.goals.demo_set import Demo, DemoSet

SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi"})
"""The names' endings that make a file a video here."""


def videos(folder: Path) -> list[Path]:
    """The video files in a folder and below, hidden ones left out, sorted by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def read_clip_folder(folder: Path) -> DemoSet:
    """The clips of such a folder, sorted by name.

    Raises:
        UserError: there are no videos, one has no caption, or a file of captions is damaged or names no video.
    """
    tables = [folder / name for name in ("captions.jsonl", "captions.csv") if (folder / name).exists()]
    if len(tables) == 2:
        raise UserError(f"{folder}: has captions.jsonl and captions.csv; keep one of them")
    captions: dict[str, list[str]] = {}
    if tables:
        captions = _read_jsonl(tables[0]) if tables[0].suffix == ".jsonl" else _read_csv(tables[0])
        for name in captions:
            if not (folder / name).is_file():
                raise UserError(f"{tables[0]}: names {name}, but there is no such file in {folder}")
    demos = []
    for path in videos(folder):
        name = path.relative_to(folder).as_posix()
        wordings = captions.get(name) if tables else _read_txt(path.with_suffix(".txt"))
        if not wordings:
            where = f"a line in {tables[0].name}" if tables else f"{path.with_suffix('.txt').name} beside it"
            raise UserError(f"{path}: has no caption; add {where}")
        demos.append(Demo(name, path, tuple(wordings)))
    return DemoSet(folder, demos)


def _read_txt(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _read_jsonl(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            wordings = line["captions"] if "captions" in line else [line["caption"]]
            name = line["file"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f'{path}, line {number}: must be {{"file": "…", "caption": "…"}}') from None
        if not isinstance(wordings, list):
            raise UserError(f"{path}, line {number}: captions must be a list of texts")
        captions.setdefault(_name(path, number, name), []).extend(_caption(path, number, text) for text in wordings)
    return captions


def _read_csv(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    rows = csv.DictReader(_text(path).splitlines())
    if not {"file", "caption"} <= set(rows.fieldnames or ()):
        raise UserError(f"{path}: its first line must name the columns file and caption")
    for row in rows:
        name = _name(path, rows.line_num, row["file"])
        captions.setdefault(name, []).append(_caption(path, rows.line_num, row["caption"]))
    return captions


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets begin their files with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None


def _name(path: Path, number: int, name: object) -> str:
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{path}, line {number}: file must be a name inside the folder, not {name!r}")
    return Path(name).as_posix()


def _caption(path: Path, number: int, caption: object) -> str:
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"{path}, line {number}: the caption is empty; say in words what the clip shows")
    return caption.strip()
