"""The project's config keys, and config files: read, merged and checked."""
