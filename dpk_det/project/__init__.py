"""``dpk-det init``: makes the files of a comparison from photos and a teacher."""
