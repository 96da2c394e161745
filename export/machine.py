"""What decides whether an engine built elsewhere runs here."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from genreward_fast.errors import UserError

# The x86 extensions that a compiler may use in plain C++ code for the machine it runs on.
_X86_VECTOR_FLAGS = (
    "sse", "ssse", "pni", "avx", "fma", "f16c", "bmi", "abm", "popcnt", "movbe", "adx", "amx", "gfni", "vaes",
    "vpclmulqdq",
)  # fmt: skip


def parse_device(device: str | torch.device) -> torch.device:
    """A device that exists here; "cuda" becomes the current one, with its index.

    Raises:
        UserError: there is no such device.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"{device}: no such device; use cpu, cuda or cuda:N") from None
    if parsed.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (parsed.index or 0) >= count:
            raise UserError(f"{device}: PyTorch sees {count} CUDA GPUs here; use cpu or another index")
        return torch.device("cuda", torch.cuda.current_device() if parsed.index is None else parsed.index)
    if parsed.type != "cpu":
        raise UserError(f"{device}: engines run on cpu and cuda only")
    return torch.device("cpu")


def compute_capability(device: torch.device) -> str:
    """ "sm_90" for a GPU of compute capability 9.0; "cpu" for the CPU."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def cpu_features() -> tuple[str, ...]:
    """The architecture, then the vector instructions of this CPU in alphabetical order."""
    machine = platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    if machine in ("x86_64", "AMD64"):
        flags = {flag for flag in flags if flag.startswith(_X86_VECTOR_FLAGS)}
    return (machine, *sorted(flags))


def gpu_record(device: torch.device) -> dict[str, str | None]:
    """`gpu_name`, `driver` and `cuda` for a manifest; None on the CPU and where a value cannot be had."""
    if device.type != "cuda":
        return {"gpu_name": None, "driver": None, "cuda": None}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        driver = answer.strip().splitlines()[0] if answer.strip() else None
    except (OSError, subprocess.SubprocessError):
        driver = None
    return {"gpu_name": torch.cuda.get_device_name(device), "driver": driver, "cuda": torch.version.cuda}
