"""A method, a network and a data set for okdc, from outside okdc."""
