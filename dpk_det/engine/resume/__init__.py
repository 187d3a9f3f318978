"""Going on with a training exactly where it stopped."""
