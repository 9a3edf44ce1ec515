"""What networks cost. Importing this imports none of its modules."""
