"""Which model this is: kinship of models whose units lie in another order, and known bases that a model is held against."""
