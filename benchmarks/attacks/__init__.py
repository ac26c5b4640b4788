"""The attacks of benchmarks/attack.py, a module a kind."""
