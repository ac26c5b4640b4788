"""Evolution: iterative merging that remembers. A run is rows; `running.evolve` goes on from whatever they say.

config       what a run is asked, read strictly from YAML
strategies   who mates with whom: greedy, kinship, grid
stopping     when to stop: unchanged top k, lasting kinship, generations, budgets
breeding     the merge configuration of a child, and the backend that writes it
evaluating   what a child is worth: recorded, command, python, lm_eval
journal      the rows of a run, read and written
running      the loop: plan, merge, import, evaluate, close a generation
"""
