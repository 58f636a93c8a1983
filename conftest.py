"""Names the fixture modules; everything else is in them."""

pytest_plugins = [
    "fixtures.lab",
    "fixtures.guests",
    "fixtures.shard",
    "fixtures.soak",
    "fixtures.defects",
    "fixtures.reporting",
]
