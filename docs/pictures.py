"""The pictures of the README and of docs/plots.md, from the published family and the replays of its experiment.

    python docs/pictures.py [FOLDER]

Without weights and without a clock, so that they come out alike each time with the same libraries.
"""

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import kinbase
from kinbase.query.models import Model
from kinbase.store import Connection, Store
from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets.model_tree import ModelTree

ROOT = Path(__file__).parents[1]
STAGES = (
    "Zephyr-beta", "MetaMath", "Mistral-Ins", "Open-chat", "WizardLM-2",
    "Daredevil-7B", "CatMarcoro14", "Mayo", "Calmesmol", "StrangeMerges_4",
    "YamshadowExp28", "YamShadow-7B", "Experiment25", "StrangeMerges_24", "MonaTrix-v6",
)  # fmt: skip
"""The models of the paper's figure 7, whose three stages are measured each by itself."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        db = kinbase.open(Path(place) / "kinbase.duckdb")
        db.import_([ROOT / "examples" / "model-kinship"])
        for run in ("greedy", "kinship"):
            db.evolve(ROOT / "examples" / "model-kinship" / f"{run}.yaml")
        db.plot("heatmap", *STAGES).save(folder / "heatmap.svg")
        db.plot("tree", "model-5-1").save(folder / "tree.svg")
        db.plot("gains", source="Model Kinship, path 1").save(folder / "gains.svg")
        db.plot("evolution").save(folder / "evolution.svg")
        with Store(db.store.path).writing() as con:
            con.execute("update raw.model set imported_at = '2026-01-01', source = null")
            con.execute(
                "update raw.run set started_at = '2026-01-01 00:00:00', ended_at = '2026-01-01 00:00:01'"
            )
        asyncio.run(screens(db.store.path, folder))


async def screens(path: Path, folder: Path) -> None:
    """The terminal UI's screens as SVG."""
    app = KinbaseApp(path)
    async with app.run_test(size=(116, 32)) as pilot:
        await rest(app)
        app.screen.query_one(FilterInput).value = "model-"
        await rest(app)
        tree = app.screen.query_one(ModelTree)
        tree.focus()
        wanted = next(node for node in tree.root.children if node.data.name == "model-3-3")
        tree.move_cursor(wanted)
        wanted.expand()
        await rest(app)
        take(app, folder / "tui-families.svg")
        for model in await app.ask(partial(models_named, names=STAGES)):
            app.choose(model)
        await pilot.press("2")
        await rest(app)
        await pilot.press("down", "right")
        await rest(app)
        take(app, folder / "tui-kinship.svg")
        await pilot.press("5")
        await rest(app)
        take(app, folder / "tui-evolution.svg")


def models_named(con: Connection, names: Sequence[str]) -> list[Model]:
    found = con.execute(
        "select distinct model_id, model from aliases join raw.model on name = model where list_contains(?, alias) order by 1",
        [list(names)],
    )
    return [Model(*row) for row in found.fetchall()]


async def rest(app: KinbaseApp) -> None:
    """Wait until nothing is asked and the cursor has rested."""
    quiet = 0
    while quiet < 10:
        await asyncio.sleep(0.05)
        busy = any(not q.done for q in app._questions) or any(w.is_running for w in app.workers)
        quiet = 0 if busy else quiet + 1


def take(app: KinbaseApp, path: Path) -> None:
    """The screen in the reader's own monospaced font: a font from the network would be asked for by whoever looks."""
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", app.export_screenshot(), flags=re.DOTALL)
    drawn = drawn.replace("Fira Code", "ui-monospace, DejaVu Sans Mono")
    number = re.search(r"terminal-(\d+)-", drawn)
    path.write_text(drawn.replace(number[1], path.stem) if number else drawn)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures")
