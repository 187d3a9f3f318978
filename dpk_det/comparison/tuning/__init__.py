"""Which config values are best: a search over trainings, by Optuna."""
