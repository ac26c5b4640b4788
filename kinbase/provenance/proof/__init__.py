"""Proof by replay: the claimed recipe run again by streaming, and its bits compared with the child's."""
