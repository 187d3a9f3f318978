"""Many trainings: suites, their plan, the processes that train them, and the report."""
