"""Defines the project's config keys; reads, merges and checks config files."""
