"""The features that the classifiers of a run read. Importing this imports none of its modules."""
