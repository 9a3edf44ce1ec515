"""What a bundle is and how it is used, without torch. `okdc.deploy` makes one from a run."""
