"""Tasks that judge a mixer: examples of any length from a seed, as token ids or as text; docs/evaluation.md has a page."""
