"""How far each layer moved from the base, as one small line of bars a block."""

from textual.content import Content

BARS = " ▁▂▃▄▅▆▇█"
ORDER = ("attn", "mlp", "norm", "embed", "head", "other")


def strips(layers: list[tuple[int | None, str, float]], width: int) -> Content:
    """`layers` are (layer, block, root mean square of the change). Heights are of the largest of all."""
    largest = max((value for _, _, value in layers), default=0.0)
    if not largest:
        return Content("equal to the base in every layer" if layers else "")
    lines = []
    for block in sorted(
        {b for _, b, _ in layers}, key=lambda b: ORDER.index(b) if b in ORDER else len(ORDER)
    ):
        inside = sorted((layer, value) for layer, b, value in layers if b == block and layer is not None)
        outside = [value for layer, b, value in layers if b == block and layer is None]
        peak = max(layers, key=lambda one: (one[1] == block, one[2]))
        bars = "".join(_bar(value, largest) for _, value in _squeezed(inside, max(width - 26, 8)))
        if outside:
            bars += (" " if bars else "") + _bar(max(outside), largest)
        at = f" @{peak[0]}" if peak[0] is not None else ""
        lines.append(
            Content.assemble(
                (f"{block:<6}", "$foreground 70%"),
                (bars, "$primary"),
                (f" {peak[2]:.2e}{at}", "$foreground 70%"),
            )
        )
    return Content("\n").join(lines)


def _bar(value: float, largest: float) -> str:
    return BARS[max(1, min(8, round(8 * value / largest)))] if value else BARS[0]


def _squeezed(values: list[tuple[int, float]], width: int) -> list[tuple[int, float]]:
    """At most `width` of them, the largest of its neighbours standing for several."""
    if len(values) <= width:
        return values
    step = len(values) / width
    return [
        max(values[int(i * step) : max(int((i + 1) * step), int(i * step) + 1)], key=lambda v: v[1])
        for i in range(width)
    ]
