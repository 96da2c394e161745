"""What works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One line of the report. A `required` check that fails means that `genreward train` cannot run."""

    name: str
    ok: bool
    detail: str
    required: bool = False


def run_checks() -> list[Check]:
    """Looks at everything that a command may need. Slow parts (a rendered test picture) take a few seconds."""
    packages = _packages()
    if not all(check.ok for check in packages):  # what follows imports them
        return [_python(), *packages, _memory(), _disk()]
    machine = [_gpu(), _triton(), _rendering()]
    return [_python(), *packages, _dm_control(), *machine, *_engines(), *_weights(), _memory(), _disk()]


def report_lines(checks: list[Check]) -> list[str]:
    """The checks as a table."""
    width = max((len(check.name) for check in checks), default=0)
    marks = {(True, True): "ok", (True, False): "ok", (False, True): "FAIL", (False, False): "-"}
    return [f"{marks[check.ok, check.required]:<4}  {check.name:<{width}}  {check.detail}" for check in checks]


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()}, {os.cpu_count()} CPU cores, {platform.machine()}")


def _packages() -> list[Check]:
    checks = []
    for module, package in (
        ("torch", "torch"),
        ("metaworld", "metaworld"),
        ("mujoco", "mujoco"),
        ("diffusers", "diffusers"),
        ("transformers", "transformers"),
        ("open_clip", "open_clip_torch"),
        ("av", "av"),
    ):
        found = importlib.util.find_spec(module) is not None
        detail = _version(package) if found else f"missing; pip install {package}"
        checks.append(Check(package, found, detail, required=True))
    return checks


def _dm_control() -> Check:
    if importlib.util.find_spec("dm_control") is None:
        return Check("dm_control", False, 'not installed: its tasks need pip install "genreward-fast[control]"')
    return Check("dm_control", True, _version("dm_control"))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", False, "no CUDA GPU: training runs on the CPU (preset tiny)")
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"sm_{properties.major}{properties.minor}"
        )
    return Check("GPU", True, "; ".join(gpus) + f"; CUDA {torch.version.cuda}")


def _triton() -> Check:
    import torch

    if importlib.util.find_spec("triton") is None:
        return Check("Triton", False, "not installed: kernels run as plain PyTorch")
    if not torch.cuda.is_available():
        return Check("Triton", False, f"{_version('triton')}, but without a GPU kernels run as plain PyTorch")
    return Check("Triton", True, _version("triton"))


def _rendering() -> Check:
    from genreward_fast.envs.gl import probe

    result = probe()
    detail = f"{result.backend} on {result.device}" if result.works else result.error
    return Check("rendering", result.works, detail, required=True)


def _engines() -> list[Check]:
    from genreward_fast.export.backends import BACKENDS

    reasons = {name: backend.why_unavailable() for name, backend in BACKENDS.items()}
    return [
        *(Check(f"engines {name}", reason is None, reason or "can be built here") for name, reason in reasons.items()),
        _engine_cache(),
    ]


def _engine_cache() -> Check:
    from genreward_fast.encoders.engine_cache import cached_engines, engine_folder

    engines = cached_engines()
    megabytes = sum(path.stat().st_size for path in engines) / 1e6
    detail = f"{len(engines)} engines, {megabytes:.0f} MB" if engines else "none yet; genreward train --engine NAME"
    return Check("engine cache", bool(engines), f"{engine_folder()}: {detail}")


def _weights() -> list[Check]:
    from genreward_fast.encoders.presets import EncoderConfig

    note = EncoderConfig(preset="tiny").note
    checks = [Check("weights tiny", True, f"built in; {note} so far" if note else "built in")]
    config = EncoderConfig(preset="paper")
    for encoder in ("vae", "dino", "clip"):
        source = str(config.source(encoder))
        cached = in_hub_cache(source)
        hint = f"{source}: not downloaded yet; comes from the hub at first use, or pass --{encoder} PATH"
        checks.append(Check(f"weights paper {encoder}", cached, f"{source}: in the hub's cache" if cached else hint))
    return checks


def in_hub_cache(source: str) -> bool:
    """Whether any version of a hub repository lies in the local cache."""
    from huggingface_hub import constants

    # OpenCLIP's NAME/TAG stands for a repository of its own on the hub.
    repository = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K" if source == "ViT-B-32/laion2b_s34b_b79k" else source
    return any(Path(constants.HF_HUB_CACHE).glob(f"models--{repository.replace('/', '--')}/snapshots/*/*"))


def _memory() -> Check:
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}
    free = kilobytes.get("MemAvailable", 0) / 2**20
    return Check("memory", free >= 3 or not text, f"{free:.1f} GiB free" if text else "unknown")


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return Check("disk", free >= 1, f"{free:.0f} GiB free here")
