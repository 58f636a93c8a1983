"""Tests that need none of the lab's hosts: they run beside those that do."""
