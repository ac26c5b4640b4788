"""Evolution: iterative merging that remembers. A run is rows; `run.evolve` goes on from whatever they say.

config        what a run is asked, read strictly from YAML
mating        who mates with whom: greedy, kinship, grid
stopping      when to stop: unchanged top k, lasting kinship, generations, budgets
merge_child   the merge configuration of a child, and the backend that writes it
evaluators    what a child is worth: command, python, lm_eval
journal       the rows of a run, read and written
beginning     a run before its first generation
planning      the children of a generation before they are made
generation    the children merged, imported, evaluated, scored
recorded      the children looked up, where nothing is to be merged or run
selection     a generation judged, and the next one planned
trust         which runs were begun on this machine
run           the loop
"""
