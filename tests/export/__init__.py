"""A package, so that for mypy its conftest.py is another module than the one above it."""
