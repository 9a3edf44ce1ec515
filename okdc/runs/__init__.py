"""What a training leaves on disk. No torch."""
