"""`data_prep filter`, from COYO's metadata to a folder of filtered rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.blocklist import Blocklist
from data_prep.coyo import Rows
from data_prep.filter.folder import FilterFolder
from data_prep.filter.rules import Rules
from data_prep.filter.scan import scan
from data_prep.filter.summary import Summary
from data_prep.filter.verdict import verdict
from data_prep.filter.write import write
from data_prep.shards import sole_writer
from stack.util.errors import UserError
from stack.util.files import sha256_file


def filter_rows(
    rows: Path,
    out: Path,
    *,
    rules: Path | None = None,
    blocklists: Sequence[Path] = (),
    rows_per_file: int = 1_000_000,
    overwrite: bool = False,
) -> Summary:
    """Write the rows of COYO's parquet files that pass all rules, in their order, and filter.json.

    A killed run, called again, continues, and ends with the same bytes. A finished folder of the
    same input, rules and blocklists is left as it is, unless `overwrite` is set.

    Args:
        rows: one parquet file or a folder of them.
        out: new folder of 00000.parquet and so on. While the run lasts, `.work` in it holds the
            rows that passed the rules about a row alone, about as long as in the input.
        rules: a YAML file instead of filter/rules.yaml.
        blocklists: text files of ids, URLs and phashes, as `data_prep.blocklist` reads them.

    Raises:
        UserError: unreadable input, rules or blocklist, or `out` holds something else.
    """
    if out.resolve() == (rows if rows.is_dir() else rows.parent).resolve():
        raise UserError(f"{out}: is the folder to read; name a new folder to write")
    wanted, blocked = Rules.read(rules), Blocklist.read(blocklists)
    found = Rows.open(rows, [*wanted.columns, *blocked.columns])
    settings = {
        "rules": wanted.resolved(),
        "input": found.fingerprint,
        "blocklists": blocked.digest,
        "rows_per_file": rows_per_file,
    }
    with sole_writer(out):
        folder = FilterFolder(out, settings, overwrite=overwrite)
        if not folder.finished:
            _run(found, wanted, blocked, folder, rows_per_file)
    return Summary.read(out)


def _run(
    rows: Rows, rules: Rules, blocked: Blocklist, folder: FilterFolder, rows_per_file: int
) -> None:
    spans, dropped = scan(rows, rules, blocked, folder.work / "scan")
    left, more, threshold = verdict(spans, rules, folder.work)
    write(folder, spans, left, rows.columns, rows_per_file)
    files = [
        {"name": file.name, "rows": pq.read_metadata(file).num_rows, "sha256": sha256_file(file)}
        for file in folder.outputs()
    ]
    dropped += more
    summary = {
        "rows": rows.total,
        "kept": left.count(),
        "dropped": {name: dropped[name] for name in rules.names},
        "clip_threshold": threshold,
    }
    folder.finish({**summary, "files": files})
