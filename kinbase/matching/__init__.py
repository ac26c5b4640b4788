"""Models that are one up to a relabelling of their units: found by assignment, undone as weights are read."""
