"""What a built model can do: its loss on a text, and the share of questions that it answers; docs/evaluation.md has a page."""
