"""Colours of numbers. Blue is positive, orange negative, lightness says how much: told apart without hue too."""

from textual.color import Color

POSITIVE = {
    True: ("#161b24", "#173f6b", "#2f74b5", "#7db8ea", "#dcefff"),
    False: ("#ffffff", "#cfe3f5", "#8fbce4", "#3d80bf", "#0b3a6b"),
}
NEGATIVE = {
    True: ("#161b24", "#5c3a0e", "#a8690f", "#e59a2f", "#ffdca8"),
    False: ("#ffffff", "#fbe3c0", "#f0b968", "#c97f17", "#6e3f00"),
}
SHADES = " ░▒▓█"


def colour(part: float, dark: bool) -> Color:
    """Of `part` between -1 and 1."""
    anchors = [Color.parse(c) for c in (POSITIVE if part >= 0 else NEGATIVE)[dark]]
    at = min(abs(part), 1.0) * (len(anchors) - 1)
    low = min(int(at), len(anchors) - 2)
    return anchors[low].blend(anchors[low + 1], at - low)


def ink(ground: Color) -> Color:
    """Black or white, whichever reads better on `ground`."""
    return Color.parse("#0b0e13") if ground.brightness > 0.45 else Color.parse("#f3f6fa")


def shade(part: float) -> str:
    """The same without colour."""
    return SHADES[min(4, round(4 * min(abs(part), 1.0)))]
