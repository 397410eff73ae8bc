"""Training built folders: a spec's recipe carried out, on tasks or on text, with checkpoints that survive being killed."""
