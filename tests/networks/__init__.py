"""Small networks that nobody wrote for okdc, one for each kind that people bring; `table` says what is to become of it.

Each is a factory that a recipe names: `networks.activations:prelu`, with tests/ on the path.
"""
