"""Files that are sources of pictures as a whole, by the end of their names."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
TABLE_READERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv",
    ".tsv": "csv",
}  # fmt: skip
"""the end of a table's name -> the reader of `datasets` for it"""


def is_archive_or_table(name: str) -> bool:
    return name.lower().endswith((*ARCHIVES, *TABLE_READERS))
