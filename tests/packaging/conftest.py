"""Fresh environments that share this one's third-party packages, and nothing of ours."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ALONE = ("--no-deps", "--no-index", "--no-build-isolation")
OURS = ("merge_plugins", "merge-plugins", "_merge_plugins", "harness_adapters")


class Environment:
    """A virtual environment."""

    def __init__(self, folder: Path, third_party: Path) -> None:
        self.folder = folder
        run("uv", "venv", "--quiet", "--python", sys.executable, folder)
        self.python = folder / "bin" / "python"
        self.packages = Path(self("import sysconfig; print(sysconfig.get_path('purelib'))"))
        (self.packages / "third_party.pth").write_text(f"{third_party}\n")

    def __call__(self, code: str, *flags: str, **variables: str) -> str:
        """Run Python code outside the checkout; return what it prints."""
        return run(self.python, *flags, "-c", code, cwd=self.folder, **variables)

    def install(self, tool: str, *what: str | Path) -> None:
        """Install without dependencies and without a network."""
        self._run(tool, "install", *ALONE, *what)

    def try_out(self, command: str) -> None:
        """Run a command that installs, as far as it changes nothing and needs no network."""
        run(*shlex.split(command), "--dry-run", "--quiet", *ALONE)

    def uninstall(self, tool: str, name: str) -> None:
        """Remove a distribution."""
        self._run(tool, "uninstall", *(["--yes"] if tool == "pip" else []), name)

    def _run(self, tool: str, command: str, *words: str | Path) -> None:
        quiet = ("--quiet", *words)
        if tool == "uv":
            run("uv", "pip", command, "--python", self.python, *quiet)
        else:
            run(self.python, "-m", "pip", command, *quiet)

    def files(self) -> set[str]:
        """Everything in site-packages, except what running Python left behind for others."""
        return {str(path.relative_to(self.packages)) for path in self.packages.rglob("*")}


def run(*words: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Run a program; return its output, or fail with what it said."""
    program, *arguments = words
    found = Path(sys.executable).with_name("uv") if program == "uv" else program
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [found, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**inherited, "HF_HUB_OFFLINE": "1", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to every package installed here that is not ours."""
    folder = tmp_path_factory.mktemp("third_party")
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(OURS) and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as a release is."""
    output = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, REPOSITORY)
    (found,) = output.glob("*.whl")
    return found


@pytest.fixture
def environment(tmp_path: Path, third_party: Path) -> Environment:
    """A fresh environment."""
    return Environment(tmp_path / "environment", third_party)


@pytest.fixture(scope="session")
def installed(
    tmp_path_factory: pytest.TempPathFactory, third_party: Path, wheel: Path
) -> Callable[..., str]:
    """Run code in an environment that holds the wheel; tests leave it as they found it."""
    found = Environment(tmp_path_factory.mktemp("installed") / "environment", third_party)
    found.install("uv", wheel)
    return found
