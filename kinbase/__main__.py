"""`python -m kinbase`."""

from kinbase.cli import main

main()
