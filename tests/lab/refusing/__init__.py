"""These programs run in the boundary's place and start no guest."""
