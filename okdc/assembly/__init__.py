"""From a recipe or a run to the objects that it names."""
