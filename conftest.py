"""This file only names the modules that have the fixtures."""

pytest_plugins = [
    "fixtures.time_limit",
    "fixtures.lab",
    "fixtures.breakdowns",
    "fixtures.guests",
    "fixtures.requirements",
    "fixtures.shard",
    "fixtures.soak",
    "fixtures.defects",
    "fixtures.run",
    "fixtures.report_files",
    "fixtures.workers",
    "fixtures.ran_on",
    "fixtures.labels",
    "fixtures.results",
    "fixtures.record",
]
