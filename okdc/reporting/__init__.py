"""`okdc report`: one page of a run, or of several, made from their files. It trains nothing."""
