"""Programs in the boundary's place that bring up no guest."""
