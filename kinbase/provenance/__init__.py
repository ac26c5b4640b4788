"""What weights say of history: recipes, claims, phylogeny."""
