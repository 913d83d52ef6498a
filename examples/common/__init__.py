"""What the programs share: their settings, their checkpoints, and how they begin and end."""
