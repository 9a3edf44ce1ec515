"""From a finished run to counted, exported and checked files."""
