"""The terminal UI."""

if __name__ != "kinbase.tui":
    # From the repository root `import tui` would make a second copy of the same modules.
    raise ImportError("import kinbase.tui, not tui")
