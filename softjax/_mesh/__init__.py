"""Where arrays live on a device mesh, and sums over devices."""
