"""Comparisons of many trainings: suites, plans, the processes that train, and the report."""
