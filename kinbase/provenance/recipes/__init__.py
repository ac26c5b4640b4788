"""Recipes: of which stored models a model was made, and with what coefficients, from sums of weights."""
