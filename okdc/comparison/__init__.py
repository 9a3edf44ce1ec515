"""Finished runs side by side. Importing this imports none of its modules."""
