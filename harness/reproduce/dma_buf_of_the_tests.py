"""iommufd's test device makes a DMA-BUF, and says which descriptor it has."""

from __future__ import annotations

from harness.errors import LabError, ProductError
from harness.guest.fleet import Fleet
from harness.host import own_tests
from harness.reproduce.show import Say

#: A variant of the test that needs no domain, only the buffer.
TEST = "iommufd_ioas.no_domain.dmabuf_simple"
SECONDS = 60


def _show(fleet: Fleet, say: Say) -> bool:
    """Run the kernel's own test of a DMA-BUF on the host."""
    host = fleet.host
    needed = {"selftests", "iommufd-test"} - host.capabilities
    if needed:
        raise LabError(
            f"host {host.name} lacks {' and '.join(sorted(needed))}",
            fix="choose a host with a debug kernel",
        )
    say(f"the host's kernel tests itself: `iommufd -r {TEST}`; it should pass")
    try:
        own_tests.run(host, "iommufd", ["-r", TEST], SECONDS)
    except ProductError as failure:
        say(failure.message)
        return f"not ok 1 {TEST}" in failure.message
    say("it passes")
    return False


SHOW = _show
