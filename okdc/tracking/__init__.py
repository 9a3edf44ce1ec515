"""Trackers: what follows a training and shows it elsewhere. None is on by default, and none stops a training."""
