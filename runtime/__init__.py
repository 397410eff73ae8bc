"""What a built model needs while running; copied beside it, so it imports torch, safetensors and the standard library only."""
