"""Everything about one model, beside the tree."""

from functools import partial

from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from kinbase.errors import KinbaseError
from kinbase.query.details import ComparedScore, Details, ParentClaim, details
from kinbase.query.kinship import Kinship
from kinbase.query.models import Model
from kinbase.text import count, decimals, size
from kinbase.tui.context import Context, context
from kinbase.tui.showing import content, figure, gain, padded, plain, plural
from kinbase.tui.widgets.divergence import strips
from kinbase.tui.widgets.model_list import ModelList


class DetailsPane(VerticalScroll):
    """Facts, parents, scores, kin and divergence of the current model."""

    HELP = """\
One model: its facts, who says what it was made from, its scores with the gain over its parents' mean, its nearest kin,
and how far each layer moved from the base.

**Tab** goes to the parents and the kin, **Enter** opens one of them, **Backspace** goes back.
"""

    def __init__(self) -> None:
        super().__init__()
        self.details: Details | None = None
        self.border_title = "Model"
        self._asked: int | None = None

    @property
    def _app(self) -> Context:
        return context(self)

    def compose(self) -> ComposeResult:
        yield Static(id="facts", markup=False)
        for part, title in (
            ("parents", "Made from"),
            ("scores", "Scores"),
            ("kin", "Nearest kin"),
            ("layers", "Distance from the base, by layer"),
        ):
            yield Static(title, classes=f"heading {part}", markup=False)
            if part in ("parents", "kin"):
                yield ModelList(id=part)
            else:
                yield Static(id=part, markup=False)

    def on_mount(self) -> None:
        self._clear("Nothing is chosen yet.")

    def show(self, model: Model) -> None:
        """Read and show `model`."""
        self.show_id(model.id)

    def show_id(self, model: int) -> None:
        self._asked = model
        self._read(model)

    def reload(self) -> None:
        if self._asked is not None:
            self.show_id(self._asked)

    @work(exclusive=True, group="details")
    async def _read(self, model: int) -> None:
        try:
            async with self._app.turn:
                found = await self._app.ask(partial(details, model=model))
        except KinbaseError as error:
            self._clear(str(error))
            return
        self.details = found
        self._draw(found)
        self.scroll_home(animate=False)

    def on_resize(self) -> None:
        if self.details is not None:
            self._draw(self.details)

    def _clear(self, message: str) -> None:
        self.details = None
        self.query_one("#facts", Static).update(content(message, "$foreground 70%"))
        for part in ("parents", "scores", "kin", "layers"):
            self._part(part, False)

    def _part(self, part: str, shown: bool) -> None:
        self.query_one(f".heading.{part}").display = shown
        self.query_one(f"#{part}").display = shown

    def _draw(self, found: Details) -> None:
        width = max(self.scrollable_content_region.width - 1, 30)
        self.query_one("#facts", Static).update(_facts(found, width))
        kin = {model.id: one for model, one in found.kin}
        self.query_one("#parents", ModelList).fill([(c.parent, _claim(c, kin, width)) for c in found.parents])
        self.query_one("#kin", ModelList).fill([(model, _kin(model, one, width)) for model, one in found.kin])
        self.query_one("#scores", Static).update(_scores(found.scores, width))
        self.query_one("#layers", Static).update(strips(found.layers, width))
        for part in ("parents", "scores", "kin", "layers"):
            self._part(part, bool(getattr(found, part)))


def _facts(found: Details, width: int) -> Content:
    lines = [content(found.model.name, "bold $primary"), Content("")]
    known = [
        ("base", found.base.name if found.base else None),
        ("relation", found.relation),
        ("parameters", f"{count(found.parameters)}  {found.dtype or ''}" if found.parameters else None),
        ("size", size(found.bytes) if found.bytes else None),
        ("architecture", found.architecture),
        ("license", found.license),
        ("made from it", plural(found.children, "model") if found.children else None),
        ("family", plural(found.members, "model") if found.members else None),
        (
            "also called",
            ", ".join(plain(alias, 40) for alias in found.aliases if alias != found.source) or None,
        ),
        ("source", found.source),
        ("revision", found.revision),
        ("digest", found.digest or "none: weights not read"),
        ("created", f"{found.created_at:%Y-%m-%d}" if found.created_at else None),
        ("imported", f"{found.imported_at:%Y-%m-%d %H:%M} UTC"),
    ]
    for name, value in known:
        if value:
            lines.append(
                Content.assemble(
                    (f"{name:<13}", "$foreground 65%"), content(value, width=max(width - 13, 20))
                )
            )
    return Content("\n").join(lines)


def _claim(claim: ParentClaim, kin: dict[int, Kinship], width: int) -> Content:
    """A parent, how it came in, and whose word that is: the weights' own is `measured`."""
    how = " ".join(plain(word, 16) for word in (claim.relation, claim.method) if word)
    weight = f" {claim.weight:g}" if claim.weight is not None else ""
    word = "measured" if claim.evidence == "weights" else f"claimed: {plain(claim.evidence, 10)}"
    known = kin.get(claim.parent.id)
    seen = f" pcc {figure(known.pcc)}" if known and known.pcc is not None else ""
    right = f"  {'its base' if claim.relation == 'base' else how}{weight} · {word}"
    right += seen if len(right) + len(seen) <= width else ""
    style = "$primary" if claim.evidence == "weights" else "$foreground 65%"
    name = content(claim.parent.name, width=width)
    return Content.assemble(name, "" if name.cell_length + len(right) <= width else "\n", (right, style))


def _kin(model: Model, kin: Kinship, width: int) -> Content:
    error = f" ±{kin.stderr:.3f}" if kin.stderr else ""
    right = f" {figure(kin.pcc):>7}{error} {plain(kin.method, 8)}"
    room = max(width - len(right), 14)
    name = content(model.name, width=room)
    return Content.assemble(name, " " * (room - name.cell_length), (right, "$foreground 65%"))


def _scores(scores: list[ComparedScore], width: int) -> Content:
    room = max(min(width - 24, 34), 12)
    compared = any(score.parents for score in scores)
    head = f"{'':<{room}}{'value':>9}{'gain' if compared else '':>10}"
    lines = [Content.styled(head, "$foreground 65%")] if scores else []
    places = decimals([score.value for score in scores if score.value is not None])
    for score in scores:
        shot = f" {score.n_shot}-shot" if score.n_shot is not None else ""
        name = plain(f"{score.benchmark} {score.metric}{shot}", room)
        better = "$success" if (score.gain or 0) > 0 else "$accent"
        lines.append(
            Content.assemble(
                f"{padded(name, room)}{figure(score.value, places):>9}", (f"{gain(score.gain):>10}", better)
            )
        )
    if compared:
        lines.append(Content.styled("gain: over the mean of its parents", "$foreground 50%"))
    return Content("\n").join(lines)
