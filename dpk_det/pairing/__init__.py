"""Pairs a student with a teacher: their levels and heads, and the hooks that join the models."""
