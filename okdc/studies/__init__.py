"""Many runs that make one table. Importing this imports none of its modules."""
