"""What the programs share: settings, the folder of a run, and how a program ends."""
