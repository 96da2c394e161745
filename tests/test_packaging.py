"""An installed wheel has all packages, and none of them shadows a library that others look for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel's content, made from a copy of the tree so that no build files are left behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    tracked = [f"{folder}/" for folder in ("genreward_fast", "kernels", "export")]
    tracked += ["pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-r", *(str(ROOT / name).rstrip("/") for name in tracked), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True)
    return target


def run(installed: Path, code: str) -> str:
    """Runs `code` where only the installed copy can be found."""
    script = f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=installed.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_top_level_kernels_or_export(installed):
    assert not (installed / "kernels").exists()
    assert not (installed / "export").exists()
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else None)"
    assert str(installed) not in run(installed, code)
    assert str(ROOT / "kernels") not in run(installed, code)


def test_every_package_is_there(installed):
    names = ("agent", "bench", "encoders", "envs", "export", "goals", "kernels", "rewards", "training")
    rewards = [f"rewards/{name}" for name in ("diffusion_reward", "frame_model", "tadpole", "viper")]
    for name in (*names, "goals/finetune", "training/report", "training/sweep", *rewards):
        package = installed / "genreward_fast" / name
        assert (package / "__init__.py").exists(), name
        assert (package / "py.typed").exists(), name
        sources = ROOT / name if name in ("kernels", "export") else ROOT / "genreward_fast" / name
        assert {p.name for p in package.glob("*.py")} == {p.name for p in sources.glob("*.py")}


def test_the_wheel_is_imported_and_cheap_to_import(installed):
    code = (
        "import genreward_fast, genreward_fast.kernels, sys; "
        "print(genreward_fast.__file__, genreward_fast.kernels.__file__, 'torch' in sys.modules)"
    )
    home, kernels, torch_loaded = run(installed, code).split()
    assert home.startswith(str(installed))
    assert kernels.startswith(str(installed))
    assert torch_loaded == "False"
