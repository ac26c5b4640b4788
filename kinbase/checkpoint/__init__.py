"""Checkpoints as they lie: the contract with importers, opening, bounded reading, alignment and identity.

The names of the contract (`contract`) are importable from here: an importer needs no other module of Kinbase
but `kinbase.errors`.
"""

from kinbase.checkpoint.contract import (
    ADDRESS,
    DTYPE_BYTES,
    FLOAT_DTYPES,
    UNSAID,
    Alias,
    Blob,
    Checkpoint,
    Commit,
    Edge,
    Extent,
    Factors,
    Facts,
    FileStamp,
    Grid,
    Problem,
    Record,
    Relative,
    ReportedKinship,
    Row,
    Score,
    Table,
    Task,
    Tensor,
    Training,
)

__all__ = [
    "ADDRESS",
    "DTYPE_BYTES",
    "FLOAT_DTYPES",
    "UNSAID",
    "Alias",
    "Blob",
    "Checkpoint",
    "Commit",
    "Edge",
    "Extent",
    "Factors",
    "Facts",
    "FileStamp",
    "Grid",
    "Problem",
    "Record",
    "Relative",
    "ReportedKinship",
    "Row",
    "Score",
    "Table",
    "Task",
    "Tensor",
    "Training",
]
