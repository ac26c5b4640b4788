"""What a screen of the terminal UI shows."""

from textual.widgets import Static


def names(tree, node=None):
    return [child.data.name for child in (node or tree.root).children if hasattr(child.data, "name")]


def outcome(app):
    return str(app.screen.query_one("#outcome", Static).render())
