"""``dpk-det init``: from photos and a teacher to the files of a comparison."""
