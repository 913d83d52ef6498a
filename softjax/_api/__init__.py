"""What a user calls: documentation, argument checks, and one hop to the computation."""
