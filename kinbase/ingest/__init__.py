"""The one path in: open the sources, choose their base, measure, persist."""
