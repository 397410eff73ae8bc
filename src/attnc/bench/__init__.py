"""Timing: the launches of a built folder beside other libraries, and what this machine can do."""
