"""Merging: several checkpoints of one architecture into a new one, streamed, by mergekit's YAML.

    from kinbase import merging

    config = merging.load("merge.yml")
    merging.merge(config, "models/child")

`config` reads the YAML, `plan` finds the tensors, `methods` has the arithmetic, `streaming` the workers,
`shards` and `folder` write. No database is known here: `Kinbase.merge` finds models by name and imports
the child. `mergekit` hands a configuration to mergekit itself.
"""

from kinbase.merging.child import Merged, merge
from kinbase.merging.config import METHODS, MergeConfig, load, parse

__all__ = ["METHODS", "MergeConfig", "Merged", "load", "merge", "parse"]
