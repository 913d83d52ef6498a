"""The mathematics of one row of logits: no jit, no chunks, no mesh."""
