"""Arithmetic on tensors: the streaming kinship pass, its kernels, sketches and samples. It knows no database."""
