"""What a run of `data_prep filter` kept and dropped: filter.json, and the table that is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stack.util.errors import UserError
from stack.util.files import read_json

SUMMARY = "filter.json"


@dataclass(frozen=True)
class Summary:
    """Counts of rows; every dropped one is counted under the first rule that drops it.

    Attributes:
        threshold: the lowest value that the rule with drop_lowest kept; None without such a rule.
    """

    rows: int
    kept: int
    dropped: dict[str, int]
    threshold: float | None = None

    @classmethod
    def read(cls, out: Path) -> Summary:
        """The summary of a finished folder.

        Raises:
            UserError: it is not one.
        """
        path = out / SUMMARY
        if not path.is_file():
            raise UserError(f"{path}: missing; not a finished folder of `data_prep filter`")
        raw = read_json(path)
        return cls(raw["rows"], raw["kept"], raw["dropped"], raw["clip_threshold"])

    def lines(self) -> list[str]:
        """A table of at most 80 columns: rows that each rule dropped, and rows left after it."""
        table = [f"{'rule':<30}{'dropped':>16}{'share':>10}{'left':>16}"]
        left = self.rows
        for name, count in self.dropped.items():
            left -= count
            table.append(f"{name:<30}{count:>16,}{self._share(count):>10}{left:>16,}")
        table.append(f"{'kept':<30}{self.kept:>16,}{self._share(self.kept):>10}")
        return table

    def _share(self, count: int) -> str:
        return f"{count / self.rows:.2%}" if self.rows else "-"
