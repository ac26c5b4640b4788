"""History from weights alone: families, copies, merges, parents and directions."""
