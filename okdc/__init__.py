"""okdc: compress image classifiers by online knowledge distillation, and ship the student."""

__version__ = "0.1.0"
