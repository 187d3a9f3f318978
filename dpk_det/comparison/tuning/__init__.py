"""The search for the best config values over trainings, with Optuna."""
