"""The terminal UI on a lineage of a million models: time to the first screen, to expand, to open, to filter.

    python benchmarks/tui.py [--models 1000000] [--keep FILE]

Makes a synthetic database (bases, fine-tunes, merges, scores, kinship; no checkpoints), drives the real
application through Pilot, and prints a table. Each figure is the median of several runs, from the key
to the screen that shows its answer; the memory is the peak of this process.
"""

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from textual.events import Key

from kinbase.store import Store
from kinbase.tui.app import KinbaseApp
from kinbase.tui.screens.families import FilterInput
from kinbase.tui.widgets.details import DetailsPane
from kinbase.tui.widgets.heatmap import Heatmap
from kinbase.tui.widgets.model_tree import ModelTree

FAMILIES = 400
TENSORS = 48

SYNTHETIC = """
create temp macro roll(x, n) as (hash(x) % n)::integer;
-- Model i of family f: the first of each family is its base. Families are of very different sizes.
create temp table member as
select i, least({families}, 1 + floor({families} * pow((roll(i, 1000003)) / 1000003.0, 2.5)))::integer as f
from range(1, {models} + 1) t(i);
create temp table ranked as
select i, f, row_number() over (partition by f order by i) as place, min(i) over (partition by f) as base from member;

insert into raw.model (model_id, name, digest, base_id, architecture, parameters, dtype, bytes, license,
    source, relation, imported_at)
select i, case place when 1 then 'base-' || f || '/foundation-' || (f % 70) || 'b'
          else 'org-' || (roll(i, 9973)) || '/' || ['chat', 'math', 'code', 'merge', 'story'][1 + roll(i + 7,
    5)] || '-' || i end,
    md5(i::varchar), case when place > 1 then base end, ['LlamaForCausalLM', 'Qwen2ForCausalLM',
    'MistralForCausalLM'][1 + f % 3],
    (1 + f % 70) * 1000000000::bigint, 'BF16', (1 + f % 70) * 2000000000::bigint, ['apache-2.0', 'mit',
    'llama3', 'other'][1 + roll(i + 3, 4)],
    'hf:org/' || i, case when place = 1 then null when roll(i + 5, 5) = 0 then 'merge' else 'finetune' end,
    timestamp '2026-01-01' + to_seconds(i)
from ranked order by i;

-- Parents lean towards the early models of the family, so that some have very many children; a fifth are merges.
create temp table edge as
select c.i as child, c.f, greatest(1, floor((c.place - 1) * pow((roll((c.i, n), 1000003)) / 1000003.0,
    3)) + 1)::bigint as place, n
from ranked c, range(2) t(n)
where c.place > 1 and (n = 0 or roll(c.i + 5, 5) = 0);
insert into raw.claim (child_id, parent_id, relation, method, weight, evidence, source)
select e.child, any_value(p.i), if(roll(e.child + 5, 5) = 0, 'merge', 'finetune'), if(roll(e.child + 5, 5) = 0, 'linear', null),
    if(roll(e.child + 5, 5) = 0, 0.5, null), if(roll(e.child, 3) = 0, 'config', 'card'), 'README.md'
from edge e join ranked p on p.f = e.f and p.place = e.place
group by e.child, p.i order by e.child;

insert into raw.score (model_id, benchmark, metric, value, source)
select i, b, 'acc', 0.3 + 0.6 * (roll((i, b), 10007)) / 10007.0, 'model-index'
from ranked, (values ('arc'), ('gsm8k'), ('mmlu')) t(b)
where roll(i, 10) = 0 or place = 1 order by i;

-- The hundred first members of the largest family are measured: all pairs, with sums by tensor.
create temp table measured as
select i, base, place from ranked where f = (select f from ranked group by f order by count(*) desc,
    f limit 1) and place between 2 and 101;
insert into raw.tensor
select any_value(base), t.p, case when t.p = 1 then 'model.embed_tokens.weight'
    when t.p % 2 = 0 then 'model.layers.' || (t.p // 2 - 1) || '.self_attn.q_proj.weight'
    else 'model.layers.' || (t.p // 2 - 1) || '.mlp.up_proj.weight' end, 1000000
from measured, range(1, {tensors} + 1) t(p) group by t.p order by t.p;
insert into raw.delta
select i, base, p, 1000000, 0, (1 + roll((i, p), 100)) * (1 + p) * 0.01, 0.1, 0, 0 from measured, range(1,
    {tensors} + 1) t(p) order by i, p;
insert into raw.pair
select a.i, b.i, a.base, {tensors} * 1000000, 0, 0, sa.s, sb.s, sqrt(sa.s * sb.s) * c.c,
    [sqrt(xy[1] * xy[2]) * c.c for xy in list_zip(sa.l, sb.l)]
from measured a
join measured b on a.i < b.i
join (select model_id, sum(sumsq) s, list(sumsq order by position) l from raw.delta group by model_id) sa on sa.model_id = a.i
join (select model_id, sum(sumsq) s, list(sumsq order by position) l from raw.delta group by model_id) sb on sb.model_id = b.i
join (select a.i as x, b.i as y, if(a.place % 4 = b.place % 4, 0.8, 0.1) + 0.1 * (roll((a.i, b.i),
    1000)) / 1000.0 as c from measured a, measured b) c
    on c.x = a.i and c.y = b.i;
-- And half a million pairs everybody else has: reported or estimated.
insert into raw.estimate (a_id, b_id, base_id, method, pcc, cs, ed, stderr, coverage)
select i, i + 1 + roll(i, 50), null, 'sketch', 0.5, 0.5, 10, 0.008, 1 from range(2, {models} // 2) t(i)
where i not in (select i from measured);
"""


def make(path: Path, models: int) -> None:
    """A synthetic lineage of `models` models at `path`."""
    with Store(path).writing() as con:
        for statement in SYNTHETIC.format(
            models=models, families=max(min(FAMILIES, models // 20), 1), tensors=TENSORS
        ).split(";\n"):
            if statement.strip():
                con.execute(statement)


async def first_screen(path: Path) -> None:
    """Say when the tree and the first details stand."""
    app = KinbaseApp(path)
    async with app.run_test(size=(120, 36)):
        await until(
            lambda: bool(app.screen.query(ModelTree)) and bool(app.screen.query_one(ModelTree).root.children)
        )
        print(time.time())


async def until(reached: Callable[[], bool]) -> None:
    while not reached():
        await asyncio.sleep(0.001)


async def drive(path: Path, runs: int) -> dict[str, list[float]]:
    """Seconds of each thing a person does, from the key to its answer on the screen."""
    taken: dict[str, list[float]] = {}
    app = KinbaseApp(path)
    async with app.run_test(size=(120, 36)) as pilot:
        screen = app.screen
        tree, pane, typed = (
            screen.query_one(ModelTree),
            screen.query_one(DetailsPane),
            screen.query_one(FilterInput),
        )
        await until(lambda: pane.details is not None)

        async def timed(what: str, key: str, reached: Callable[[], bool], rest: float = 0.3) -> None:
            await asyncio.sleep(rest)
            began = time.perf_counter()
            # pilot.press would wait for the process to be idle, 20 to 40 ms, before the key goes out.
            app.post_message(Key("minus" if key == "-" else key, key if len(key) == 1 else None))
            await until(reached)
            taken.setdefault(what, []).append(time.perf_counter() - began)

        def shows(text: str) -> bool:
            return tree.wanted is not None and tree.wanted.typed == text and tree.settled

        for node in tree.root.children[:runs]:
            tree.move_cursor(node)
            await timed("expand a base", "enter", lambda node=node: bool(node.children))
            leaf = node.children[3]
            await asyncio.sleep(0.3)
            tree.move_cursor(leaf)
            await timed(
                "open a model", "enter", lambda leaf=leaf: pane.details.model.id == leaf.data.id, rest=0
            )
            tree.move_cursor(node)
            await pilot.press("enter")
        await pilot.press("slash")
        for text in ("chat-77", "math-123", "merge-9")[:runs]:
            for end in range(1, len(text) + 1):
                await timed("filter, each key", text[end - 1], lambda sofar=text[:end]: shows(sofar))
            typed.value = ""
        for text in (
            "license:mit",
            "mmlu>0.8",
            "score>0.85",
            "chat license:mit params<10b",
            "gen=2",
            "gen>8",
        ):
            for _ in range(min(runs, 3)):
                await asyncio.sleep(0.5)
                began = time.perf_counter()
                typed.value = text
                await until(lambda text=text: shows(text))
                taken.setdefault(f"filter {text}", []).append(time.perf_counter() - began)
                typed.value = ""
        typed.value = ""
        await asyncio.sleep(0.5)
        tree.focus()
        await timed(
            "kinship of 40",
            "2",
            lambda: (
                app.current_mode == "kinship"
                and bool(app.screen.query(Heatmap))
                and bool(app.screen.query_one(Heatmap).table.models)
            ),
        )
        await timed(
            "lineage",
            "3",
            lambda: app.current_mode == "lineage" and getattr(app.screen, "line", None) is not None,
        )
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="make the database here, or use the one that is there")
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first:
        asyncio.run(first_screen(options.first))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.keep or Path(folder) / "lineage.duckdb"
        if path.exists():
            Store(path).migrate()
        else:
            began = time.perf_counter()
            make(path, options.models)
            print(
                f"made {options.models:,} models in {time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e6:.0f} MB"
            )
        first = []
        for _ in range(options.runs):
            began = time.time()
            said = subprocess.run(
                [sys.executable, __file__, "--first", path], check=True, capture_output=True, text=True
            )
            first.append(float(said.stdout) - began)
        taken = {"first screen, from the command": first} | asyncio.run(drive(path, options.runs))
    print(f"{'':<34}{'median':>10}{'worst':>10}{'runs':>6}")
    for what, seconds in taken.items():
        print(
            f"{what:<34}{1e3 * statistics.median(seconds):>7.0f} ms{1e3 * max(seconds):>7.0f} ms{len(seconds):>6}"
        )
    print(f"{'peak memory':<34}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:>6.0f} MiB")


if __name__ == "__main__":
    main()
