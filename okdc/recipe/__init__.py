"""Recipes: what may be written in one, and where they are found. No torch."""
