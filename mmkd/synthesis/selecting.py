"""`mmkd select`: rows through a list of selectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmkd.config.load import check_options
from mmkd.config.synthesis_schema import SelectConfig
from mmkd.data.rejected import BadRow, RejectedLog, mend_or_drop
from mmkd.data.write_records import write_jsonl
from mmkd.synthesis.cards import write_card
from mmkd.synthesis.rows import open_rows, usable
from mmkd.synthesis.selection import Rows
from mmkd.synthesis.selection.registry import selector
from mmkd.synthesis.visible import in_table


def select_records(config: SelectConfig) -> Path:
    """Write the rows that stay to OUT/records.jsonl, and why the others went to OUT/rejected.jsonl.

    Returns: the file of records.

    Raises: ConfigError for an unknown selector or option, before a row is read; DataError for rows that cannot be used.
    """
    chosen = []
    for place, section in enumerate(config.select):
        function = selector(section.name)
        options = check_options(section.name, section.options(), function, at=f"select[{place}]", given=("rows",))
        chosen.append((section.name, function, options))
    records, out = open_rows(config.data), Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rejected.jsonl").unlink(missing_ok=True)  # of an earlier selection
    log = RejectedLog(out / "rejected.jsonl", mend_or_drop("data"))
    kept = usable(records, log, "data")
    table = Table("selector", "rows", "kept", title=f"{len(records):,} rows", title_justify="left")
    table.add_row("readable", f"{len(records):,}", f"{len(kept):,}")
    tasks, facts = Counter(records[index].task for index in kept), dict[str, str]()
    for name, function, options in chosen:
        dropped = function(Rows(records, kept, config.seed, out), **options)
        for index, reason in sorted(dropped.items()):
            row = reason if isinstance(reason, BadRow) else BadRow(reason, name)
            log.note("data", index, records[index].id, row)
        before, kept = len(kept), [index for index in kept if index not in dropped]
        table.add_row(name, f"{before:,}", f"{len(kept):,}")
        given = ", ".join(f"{key} {value}" for key, value in options.items() if key != "model")
        told = f"{before:,} rows before, {len(kept):,} after" + (f" ({given})" if given else "")
        facts[f"{len(facts) + 1}. {name}"] = told
    write_jsonl(out / "records.jsonl", (records[index] for index in kept))
    write_card(out, "rows that selectors left", facts)
    console = Console(stderr=True)
    console.print(table)
    console.print(_by_task(tasks, Counter(records[index].task for index in kept)))
    return out / "records.jsonl"


def _by_task(before: Counter[str], after: Counter[str]) -> Table:
    table = Table("task", "rows", "kept")
    for task, count in before.most_common(20):
        table.add_row(in_table(task) or "(none)", f"{count:,}", f"{after[task]:,}")
    return table
