"""Resume a training exactly where it stopped."""
