"""Each room imports only from floors below its own (docs/architecture.md), never from one beside it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "cli": 7, "commands": 7, "config": 7, "doctor": 7, "bench": 7,
    "training": 6, "wrappers": 6, "sb3": 6,
    "agent": 5, "rewards": 5,
    "goals": 4,
    "encoders": 3, "envs": 3,
    "export": 2,
    "kernels": 1,
    "types": 0, "errors": 0, "files": 0, "captured": 0, "partition": 0,
}  # fmt: skip
FILES = sorted(
    [*(ROOT / "genreward_fast").rglob("*.py"), *(ROOT / "kernels").glob("*.py"), *(ROOT / "export").glob("*.py")]
)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("kernels", "export"):
        return parts[0]
    return parts[1].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "genreward_fast" and len(parts) > 1 and parts[1] in FLOORS:
                rooms.add(parts[1])
            assert parts[0] not in ("kernels", "export"), f"{path}: import them as parts of genreward_fast"
    return rooms


def test_every_file_has_a_floor():
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    room = room_of(path)
    if room == "__init__":  # the package's own, which only names what lives where
        return
    for other in imported_rooms(path) - {room}:
        same_floor_ok = FLOORS[room] in (0, 7)  # those floors are single files, not rooms
        allowed = FLOORS[other] < FLOORS[room] or (same_floor_ok and FLOORS[other] == FLOORS[room])
        assert allowed, f"{path} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
