"""What is decided before building: losses and costs measured once, solved many times, and proved; docs/tuning.md has a page."""
