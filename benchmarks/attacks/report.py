"""What was tried and what gave, a row an attack."""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass
class Row:
    """One attack: how often it was tried, what gave, and the worst cost met."""

    name: str
    told: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    worst: str = ""
    seconds: float = 0.0


class Table:
    """The rows so far; the last one is under way."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.beside = ""
        """What is written beside a row in a tally: seed and size."""

    @property
    def failures(self) -> int:
        """How many things gave."""
        return sum(len(row.failures) for row in self.rows)

    def begin(self, name: str, told: str) -> None:
        """A new row."""
        self.rows.append(Row(name, told))

    def tried(self, failure: str | None = None, worst: str = "") -> None:
        """One attempt, and what gave."""
        row = self.rows[-1]
        row.tried += 1
        row.worst = worst or row.worst
        if failure:
            row.failures.append(failure)
            print(f"  {row.name}: {failure[:300]}", flush=True)

    def end(self, seconds: float) -> None:
        """The row is done."""
        row = self.rows[-1]
        row.seconds = seconds
        print(
            f"{row.name}: {row.tried:,} tried, {len(row.failures)} failures, {seconds:.0f} s {row.worst}",
            flush=True,
        )

    def keep(self, tally: Path) -> None:
        """Append the last row to a file of JSON lines, with the commit and the day: runs add up."""
        asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        row = asdict(self.rows[-1]) | {
            "commit": commit,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with tally.open("a") as file:
            file.write(json.dumps(row | {"how": self.beside}) + "\n")

    def show(self, last: str) -> None:
        """Print the table in Markdown."""
        print("\n| attack | tried | failures | seconds | worst |\n|---|---|---|---|---|")
        for row in self.rows:
            print(
                f"| {row.name}: {row.told} | {row.tried:,} | {len(row.failures)} | {row.seconds:.0f} | {row.worst} |"
            )
        print(f"\n{last}")


def add_up(tally: Path) -> None:
    """Print what all runs of a tally tried and what gave, an attack a row."""
    rows = [json.loads(line) for line in tally.read_text().splitlines()]
    print("| attack | tried | failures | days | commits | worst of each run |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        days, commits = (
            sorted({row[key][:length] for row in mine}) for key, length in (("at", 10), ("commit", 40))
        )
        worst = "; ".join(dict.fromkeys(row["worst"] for row in mine if row["worst"]))
        print(
            f"| {name} | {sum(row['tried'] for row in mine):,} | {sum(len(row['failures']) for row in mine)} "
            f"| {', '.join(days)} | {', '.join(commits)} | {worst} |"
        )
