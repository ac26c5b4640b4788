"""What was tried and what gave, a row an attack."""

from dataclasses import dataclass, field


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

    def show(self, last: str) -> None:
        """Print the table in Markdown."""
        print("\n| attack | tried | failures | seconds | worst |\n|---|---|---|---|---|")
        for row in self.rows:
            print(
                f"| {row.name}: {row.told} | {row.tried:,} | {len(row.failures)} | {row.seconds:.0f} | {row.worst} |"
            )
        print(f"\n{last}")
