"""Evolution: iterative merging that remembers. A run is rows; `running.evolve` goes on from whatever they say.

config       what a run is asked, read strictly from YAML
strategies   who mates with whom: greedy, kinship, grid
stopping     when to stop: unchanged top k, lasting kinship, generations, budgets
breeding     the merge configuration of a child, and the backend that writes it
evaluating   what a child is worth: command, python, lm_eval
journal      the rows of a run, read and written
beginning    a run before its first generation
planning     the children of a generation before they are made
making       the children merged, imported, evaluated, scored
recorded     the children looked up, where nothing is to be merged or run
closing      a generation judged, and the next one planned
trust        which runs were begun on this machine
running      the loop
"""
