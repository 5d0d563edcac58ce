"""Score recipes by a program of any harness, run on each merge as a folder without weights."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from merge_plugins.errors import MergeError
from merge_plugins.outputs.mount import mount
from merge_plugins.plugins.values import is_number
from merge_plugins.recipe import Recipe
from merge_plugins.search.goals import Numbers, read_goals

FOLDER = "{folder}"
SHOWN = 2000
"""Characters of a failed program's last words that are shown."""
GRACE = 10.0
"""Seconds from the request to end until a program is killed."""


class ProgramObjective(Numbers):
    """An `Objective`: a command whose last line of output is JSON, numbers by name.

    ``command``: in it, ``{folder}`` is the mounted merge, to be loaded with
    ``trust_remote_code=True``. No shell reads it. ``tasks``: the goals, as
    `merge_plugins.search.goals` reads them. ``timeout``: seconds for one merge.

    The folder is removed when the command ends.
    """

    def __init__(
        self,
        command: str,
        tasks: Mapping[str, Any],
        *,
        timeout: float | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as exc:
            raise MergeError(f"command {command!r}: {exc}") from exc
        if not any(FOLDER in word for word in self._words):
            raise MergeError(f"command {command!r} needs {FOLDER} where the model's folder goes")
        if shutil.which(self._words[0]) is None:
            raise MergeError(f"command {command!r}: no program {self._words[0]!r} to run")
        if timeout is not None and not (is_number(timeout) and timeout > 0):
            raise MergeError(f"timeout is seconds, more than 0; got {timeout!r}")
        self._command, self._timeout, self._trust = command, timeout, trust_remote_code
        super().__init__(read_goals(tasks, f"{command!r}"), f"{command!r}")

    @property
    def identity(self) -> str:
        """A hash of the command and the files it names: 16 hex digits."""
        content = hashlib.sha256(self._command.encode())
        for word in self._words:
            if Path(word).is_file():
                content.update(Path(word).read_bytes())
        return content.hexdigest()[:16]

    def numbers(self, recipe: Recipe) -> Any:
        """Mount the merge, run the command on it, and read its last line."""
        with tempfile.TemporaryDirectory(prefix="merge-plugins-") as temporary:
            folder = mount(recipe, Path(temporary) / "model", trust_remote_code=self._trust)
            last = self._run(folder, Path(temporary))
        try:
            return json.loads(last)
        except ValueError as exc:
            raise MergeError(
                f"the last line that {self._command!r} wrote is {last!r:.200}; JSON is expected, "
                f'as {{"{next(iter(self.goals))}": 0.5}}'
            ) from exc

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _run(self, folder: Path, temporary: Path) -> str:
        """Run the command; return the last line of its output that is not empty."""
        words = [word.replace(FOLDER, str(folder)) for word in self._words]
        with (
            (temporary / "output").open("w+b") as output,
            (temporary / "errors").open("w+b") as err,
        ):
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=err,
                    start_new_session=os.name == "posix",  # so that all it starts can be ended
                )
            except OSError as exc:
                raise MergeError(f"{self._command!r} does not start: {exc}") from exc
            try:
                code = process.wait(self._timeout)
            except subprocess.TimeoutExpired as exc:
                raise MergeError(
                    f"{self._command!r} took more than {self._timeout:g} seconds and was ended"
                    f"{_said(err)}"
                ) from exc
            finally:
                _end(process)
            if code != 0:
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                raise MergeError(f"{self._command!r} failed with {how}{_said(err)}")
            lines = _tail(output, 1 << 20).split("\n")
            return next((line for line in reversed(lines) if line.strip()), "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program that runs, and all that it has started."""
    if process.poll() is not None:
        return
    for how in (signal.SIGTERM, signal.SIGKILL) if os.name == "posix" else ():
        os.killpg(process.pid, how)
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


def _said(errors: IO[bytes]) -> str:
    """Quote the end of what a program wrote of its errors."""
    text = _tail(errors, SHOWN).strip()
    return f"; it said:\n{text}" if text else ""


def _tail(file: IO[bytes], n_bytes: int) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - n_bytes))
    return file.read().decode("utf-8", "replace")
