"""What the SQL editor can complete: views, their columns, macros, and SQL's own words."""

import re
from dataclasses import dataclass, field

from kinbase.query.catalogue import Catalogue

KEYWORDS = tuple(
    """
    select from where group by order limit having join left inner on using as and or not in is null like ilike between
    case when then else end distinct union all exists with recursive over partition count sum avg min max desc asc
    describe summarize explain qualify offset cast values asof pivot unnest list contains
    """.split()  # noqa: SIM905  # one word a line would be sixty lines
)

MOST = 40


@dataclass
class Words:
    """Names of the database: public views with their columns, and macros."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    macros: list[str] = field(default_factory=list)


def words(known: Catalogue) -> Words:
    """What there is to name."""
    return Words(
        {view.name: [column.name for column in view.columns] for view in known.views},
        [macro.name for macro in known.macros],
    )


def at_cursor(line: str) -> tuple[str, str]:
    """The word before the cursor, and the name before its dot if it has one."""
    found = re.search(r"(?:(\w+)\.)?(\w*)$", line)
    return (found[2], found[1] or "") if found else ("", "")


def completions(known: Words, text: str, word: str, owner: str = "") -> list[tuple[str, str]]:
    """Candidates with what they are. After a dot only columns: of the view, or of the view the alias stands for."""
    if owner:
        aliased = re.findall(rf"\b(\w+)\s+(?:as\s+)?{re.escape(owner)}\b", text.lower())
        view = (
            owner if owner in known.columns else next((name for name in aliased if name in known.columns), "")
        )
        return _match([(column, view) for column in known.columns.get(view, [])], word)[:MOST]
    named = set(re.findall(r"\w+", text.lower()))
    near = [(column, view) for view, columns in known.columns.items() if view in named for column in columns]
    every = [
        (column, view) for view, columns in known.columns.items() if view not in named for column in columns
    ]
    candidates = [
        *near,
        *((view, "view") for view in known.columns),
        *((macro, "macro") for macro in known.macros),
        *((keyword, "") for keyword in KEYWORDS),
        *every,
    ]
    return _match(candidates, word)[:MOST]


def _match(candidates: list[tuple[str, str]], word: str) -> list[tuple[str, str]]:
    """Those that start with the word, then those that hold it; each name once."""
    word = word.lower()
    first = [c for c in candidates if c[0].lower().startswith(word)]
    then = [
        c for c in candidates if len(word) > 2 and word in c[0].lower() and not c[0].lower().startswith(word)
    ]
    seen: dict[str, str] = {}
    for name, kind in first + then:
        seen.setdefault(name, kind)
    return list(seen.items())
