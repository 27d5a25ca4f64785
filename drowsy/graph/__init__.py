"""A network's graph: traced, read, rewritten, converted."""
