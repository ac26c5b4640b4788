"""One small module a format; the contract is kinbase.checkpoint."""

if __name__ != "kinbase.importers":
    # From the repository root `import importers` would make a second copy of the same modules.
    raise ImportError("import kinbase.importers, not importers")
