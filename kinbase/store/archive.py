"""The whole database as a folder that imports again: a Parquet file a table, and `kinbase.json`, which tells the schema.

It is sealed with this machine's key. What comes back unsealed is a stranger's: what its program or its user found is
what others report (kinbase.checkpoint.authority).
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from kinbase.checkpoint.authority import OURS
from kinbase.checkpoint.files import inside, open_regular, opened, read_bounded
from kinbase.checkpoint.machine import is_signed, signed
from kinbase.checkpoint.open import MANIFEST
from kinbase.errors import CheckpointError, DiskError, KinbaseError
from kinbase.schema import scripts
from kinbase.store import joining, journal, surface
from kinbase.store.connection import Connection, Store
from kinbase.store.corrections import HAND

FOLDER = ".kinbase"
"""The ending of such a folder."""

MOST = 100_000_000
"""Values that one table's file may tell however small it is, and an eighth of the bytes of its texts; beyond it, sixteen a
byte of the file. Three million models, whose rows compress best of all, have half of it."""


def write_all(store: Store, folder: str) -> dict[str, int]:
    """Write every table to a new `folder`; rows by table. Raises KinbaseError when it exists already."""
    target = Path(folder)
    part = target.with_name(target.name + ".part")
    if os.path.lexists(target):
        raise KinbaseError(f"{folder} exists already: name a new folder, or remove that one first")
    _clear(part)
    rows: dict[str, int] = {}
    try:
        with store.reading() as con:
            part.mkdir(parents=True)
            for table in _tables():
                store.write_parquet(con, f"from raw.{table}", str(part / f"{table}.parquet"))
                ((rows[table],),) = con.execute(f"select count(*) from raw.{table}").fetchall()
        seal = signed(_contents(part))
        manifest = {"kinbase": "whole database", "migrations": _migrations(), "rows": rows, "seal": seal}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        part.rename(target)
    except OSError as error:
        raise DiskError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return rows


def _clear(part: Path) -> None:
    """Take away what an export that was killed left, and nothing else; raises KinbaseError for anything else."""
    if not os.path.lexists(part):
        return
    names = [entry.name for entry in part.iterdir()] if part.is_dir() and not part.is_symlink() else ["?"]
    if not all(re.fullmatch(r"\w+\.parquet(\.part)?|" + re.escape(MANIFEST), name) for name in names):
        raise KinbaseError(f"{part} is in the way: move it, or name another folder")
    shutil.rmtree(part, ignore_errors=True)


def read_all(store: Store, folder: str, *, trust: bool = False) -> list[str]:
    """Fill an empty database with a whole export, or join it with what is there; what came in, in lines.

    A database that has anything already is joined with it in one act, which `undo` takes back; see
    `kinbase.store.joining`. Evidence of the program and of its user becomes `reported`, unless the export was made on
    this machine, or is to be trusted. Raises KinbaseError, and leaves everything as it was, when the export is of
    another schema or damaged.
    """
    try:
        manifest = json.loads(read_bounded(Path(folder, MANIFEST), 1 << 20))
        same = manifest["migrations"] == _migrations()
    except (CheckpointError, ValueError, TypeError, KeyError, RecursionError):
        raise KinbaseError(
            f"{Path(folder, MANIFEST)} does not tell the export's schema: export it again"
        ) from None
    if not same:
        raise KinbaseError(
            f"{folder} was exported with another schema: import it with the Kinbase that wrote it, then `kinbase migrate`"
        )
    at = os.path.realpath(folder)
    origin = Path(at).name.removesuffix(FOLDER) or "other"
    is_ours = trust or is_signed(_contents(Path(at)), manifest.get("seal"))
    # DuckDB asks whether it may read before it takes the pattern for a name: both have to be allowed.
    with store.writing(reads=[at, as_pattern(at)]) as con:
        if not _has_rows(con):
            rows = _put_tables(con, at, "raw.")
            _go_on_numbering(con, at)
            told = [] if is_ours else _as_reported(con, "raw.", origin)
            return [
                f"a whole database: {rows['model']} models, {rows['claim']} claims, {rows['score']} scores",
                *told,
            ]
        _put_tables(con, at, "theirs_")
        told = [] if is_ours else _as_reported(con, "theirs_", origin)
        joined = joining.join(con, origin)
        journal.put_act(con, "import", folder, apart=("pass",))
        return joined.notes() + told


def _contents(folder: Path) -> str:
    """The digests of the tables' files, as the seal is over them; raises CheckpointError for what is no file."""
    made = {}
    for table in _tables():
        with opened(inside(folder, f"{table}.parquet")) as file:
            made[table] = hashlib.file_digest(file, "sha256").hexdigest()
    return json.dumps(["whole database", made], sort_keys=True)


def _as_reported(con: Connection, prefix: str, origin: str) -> list[str]:
    """Make what another's program or user found what `origin` reports, and tell how much: only this one gives evidence."""
    changed = con.execute(
        f"""
        update {prefix}claim set evidence = 'reported',
            source = concat($1::varchar, ': ', evidence, coalesce(', ' || source, ''))
        where list_contains($2, evidence) returning 1
        """,
        [origin, list(OURS)],
    ).fetchall()
    con.execute(f"update {prefix}model set by_hand = null where by_hand is not null")
    con.execute(
        f"update {prefix}score set source = concat($1::varchar, ': ', source) where source = $2",
        [origin, HAND],
    )
    number = len(changed)
    return (
        [
            f"{number} edge{'s' * (number > 1)} with the evidence of the program that exported them ({', '.join(OURS)}): "
            "stored as reported; --trust takes them as found here"
        ]
        if changed
        else []
    )


def _has_rows(con: Connection) -> bool:
    """Whether the database holds anything at all: models, or only acts that took them away."""
    return any(con.execute(f"select 1 from raw.{table} limit 1").fetchall() for table in _tables())


def as_pattern(folder: str) -> str:
    """The folder's own name as a pattern that means it and nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", folder)


def _tables() -> list[str]:
    """The tables that the scripts make, but for their journal: a file may hold others, which are its own affair."""
    ours = (key.removeprefix("table raw.") for key in surface.expected() if key.startswith("table raw."))
    return sorted(name for name in ours if name != "migration")


def _put_tables(con: Connection, folder: str, prefix: str) -> dict[str, int]:
    """Put what `write_all` wrote into the tables, `raw.`, or into temporary ones of another prefix; rows by table."""
    rows = {}
    for table in _tables():
        if prefix != "raw.":
            con.execute(f"create or replace temp table {prefix}{table} as from raw.{table} limit 0")
        os.close(open_regular(inside(folder, f"{table}.parquet")))  # no pipe, and no link out of the folder
        file = as_pattern(folder) + f"/{table}.parquet"  # nor is it a partition
        _check_size(con, file, Path(folder, f"{table}.parquet").stat().st_size)
        con.execute(
            f"insert into {prefix}{table} by name from read_parquet($1, hive_partitioning = false)", [file]
        )
        ((rows[table],),) = con.execute(f"select count(*) from {prefix}{table}").fetchall()
    return rows


def _check_size(con: Connection, file: str, nbytes: int) -> None:
    """Raise KinbaseError for a table that is far larger than its file: Parquet can tell one text, or a list, for all rows.

    Both are counted without being built: values by the file's own index, texts by their dictionary.
    """
    columns = con.execute("describe from read_parquet($1, hive_partitioning = false)", [file]).fetchall()
    measures = {"VARCHAR": "strlen", "BLOB": "octet_length"}
    lengths = " + ".join(
        f'coalesce(sum({measures[kind]}("{name.replace(chr(34), 2 * chr(34))}")), 0)'
        for name, kind, *_ in columns
        if kind in measures
    )
    ((values,),) = con.execute("select sum(num_values) from parquet_metadata($1)", [file]).fetchall()
    ((length,),) = con.execute(
        f"select {lengths or 'count(*) * 0'} from read_parquet($1, hive_partitioning = false)", [file]
    ).fetchall()
    if (values or 0) > MOST + 16 * nbytes or length > 8 * MOST + 16 * nbytes:
        raise KinbaseError(
            f"{Path(file).name} is far larger than its {nbytes:,} bytes: the export is refused"
        )


def _go_on_numbering(con: Connection, folder: str) -> None:
    """Give what comes next the numbers after those of the tables that were filled."""
    for table in ("model", "run"):
        ((first, last),) = con.execute(
            f"select coalesce(min({table}_id), 1), coalesce(max({table}_id), 0) from raw.{table}"
        ).fetchall()
        if first < 1 or last > 10_000_000:
            raise KinbaseError(f"{folder} numbers its {table}s from {first} to {last}: it is damaged")
        con.execute(f"select max(nextval('raw.{table}_ids')) from range(?)", [last]).fetchall()


def _migrations() -> dict[str, str]:
    return {name: checksum for name, _, checksum in scripts("migrations")}
