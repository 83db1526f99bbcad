"""The folder that `data_prep filter` writes: what is in it, whose it is, and starting it anew."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.filter.summary import SUMMARY
from stack.util.errors import UserError
from stack.util.files import read_json, write_json

WORK = ".work"
_SETTINGS = "settings.json"
_OUTPUT = re.compile(r"[0-9]{5,}\.parquet")

Settings = dict[str, Any]
"""All that decides the bytes of the output: rules, input, blocklists, rows_per_file."""


def output_name(number: int) -> str:
    """Of the output files, in their order."""
    return f"{number:05d}.parquet"


class FilterFolder:
    """A folder that holds one run's output, finished or not.

    Attributes:
        work: the folder in it for unfinished work, to be gone in the end.
        finished: the output is whole, and of the same settings.

    Raises:
        UserError: the folder holds other files, or rows of other settings and `overwrite` is off.
    """

    def __init__(self, out: Path, settings: Settings, *, overwrite: bool = False) -> None:
        self.out, self.work = out, out / WORK
        self.settings = json.loads(json.dumps(settings))
        there = self._settings_there()
        self._refuse_foreign(there)
        same = json.dumps(there) == json.dumps(self.settings)  # The order of the rules counts.
        self.finished = same and (out / SUMMARY).exists()
        if self.finished and not overwrite:
            self._check()
            self.remove_work()
        elif self.finished or not same:
            if there is not None and not overwrite:
                changes = ", ".join(_changes(there, self.settings))
                raise UserError(
                    f"{out}: holds rows filtered with another {changes}; name a new folder, or "
                    "replace the rows in it with --overwrite"
                )
            self._start()
            self.finished = False

    def outputs(self) -> list[Path]:
        """The whole output files so far, without gaps."""
        files: list[Path] = []
        while (path := self.out / output_name(len(files))).exists():
            files.append(path)
        return files

    def finish(self, summary: dict[str, Any]) -> None:
        """Write filter.json, after which the folder is finished."""
        write_json(self.out / SUMMARY, summary | self.settings)
        self.remove_work()

    def remove_work(self) -> None:
        if self.work.exists():
            shutil.rmtree(self.work)

    def _settings_there(self) -> Settings | None:
        for path in (self.out / SUMMARY, self.work / _SETTINGS):
            if path.exists():
                raw = read_json(path)
                return {name: raw[name] for name in self.settings if name in raw}
        return None

    def _refuse_foreign(self, there: Settings | None) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out}: is not a folder; name a new one")
        for path in sorted(self.out.glob("[!.]*")):
            ours = path.name == SUMMARY or _OUTPUT.fullmatch(path.name)
            if there is None or not ours:
                raise UserError(f"{self.out}: holds other files ({path.name}); name a new folder")

    def _check(self) -> None:
        for entry in read_json(self.out / SUMMARY)["files"]:
            if not (self.out / entry["name"]).exists():
                raise UserError(
                    f"{self.out}: {entry['name']}: missing; restore it, or make the folder anew "
                    "with --overwrite"
                )

    def _start(self) -> None:
        # While this runs, the settings are no one's: a run killed here is not taken up as it is.
        write_json(self.work / _SETTINGS, {})
        (self.out / SUMMARY).unlink(missing_ok=True)
        for path in self.out.glob("*.parquet"):
            path.unlink()
        shutil.rmtree(self.work)
        write_json(self.work / _SETTINGS, self.settings)


def _changes(there: Settings, wanted: Settings) -> Iterator[str]:
    """The settings that differ, of the rules each one."""
    for name, value in wanted.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            differing = [key for key in {**other, **value} if other.get(key) != value.get(key)]
            if differing or [*value] != [*other]:
                yield f"{name} ({', '.join(differing) or 'order'})"
        elif other != value:
            yield name
