"""The demo: a family of tiny models, really trained, made offline."""
