"""Provide the guests that a test asks for, as clean as it needs them, as fast as the host can.

A host with snapshots boots each set of guests once, and restores it for each later test, of later
runs, too, if the snapshot may last. On any other host guests are booted for each test, or reused if
the test allows it.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from harness.errors import BreakdownError, HarnessError, HilError
from harness.guest import description, guest
from harness.guest.choice import Candidate, Needs, choose
from harness.guest.description import AssignedDevice, Identity, place
from harness.guest.guest import Guest
from harness.guest.watch import Watch
from harness.host import pci
from harness.host.ability import ANY
from harness.host.host import EXACT_EVENTS, Host
from harness.progress import Progress
from harness.steps import step


class Freshness(enum.Enum):
    """How clean a test needs its guests."""

    #: Nothing has run in the guest since its boot. It is restored if the host can, else booted.
    CLEAN = "clean"
    #: Tests that share it, and passed, may have used the guest before.
    SHARED = "shared"
    #: The guest is booted now, during the test.
    COLD = "cold"


_IDENTITIES = TypeAdapter(tuple[Identity, ...])


@dataclass
class _Running:
    """The guests that run now. `spoiled` ones are not shared with another test."""

    key: str
    identities: tuple[Identity, ...]
    spoiled: bool = False


#: A guest and the devices chosen for it.
_Placed = tuple[description.GuestSpec, list[AssignedDevice]]


class Fleet:
    """The guests of one host, one set of guests at a time. `adapt` returns the description that a
    guest has on this host in place of the one that is asked for. `lasting` says that later runs may
    go on from snapshots of this one."""

    def __init__(
        self,
        host: Host,
        progress: Progress,
        adapt: Callable[[description.GuestSpec], description.GuestSpec] = lambda asked: asked,
        *,
        lasting: bool = False,
    ) -> None:
        self.host, self.progress, self.adapt, self.lasting = host, progress, adapt, lasting
        #: What must not happen while the guests run: see `check`.
        self.watch = Watch(host)
        #: The guests that a test has now.
        self._lent: list[Guest] = []
        self._current: _Running | None = None
        self._declared: Counter[Needs] | None = None
        #: Whether no other test has the guests of the one that runs, and which were booted for it.
        self._alone = False
        self._booted: set[str] = set()

    @contextlib.contextmanager
    def guests(
        self, specs: Sequence[description.GuestSpec], freshness: Freshness = Freshness.CLEAN
    ) -> Iterator[list[Guest]]:
        """Yield guests at their prompts, in the order of `specs`.

        They run on afterwards: the next call ends or replaces them, and `clear` ends them. If the
        body raises, they are not shared with another test.

        Raises MissingDevicesError; and, whether the body raises or not, what `check` does.
        """
        specs = [self.adapt(spec) for spec in specs]
        placed = list(zip(specs, self.choose(specs), strict=True))
        key = self._key(placed)
        try:
            with contextlib.ExitStack() as stack:
                running = self._shared(key, stack) if freshness is Freshness.SHARED else None
                if running is None:
                    running = self._anew(key, placed, freshness, stack)
                self._lent = running
                yield running
                self.check()
        except BaseException as problem:
            self.spoil()
            self.check(problem)
            raise
        finally:
            self._lent = []
            if freshness is not Freshness.SHARED:
                # Who has guests of its own may leave them in any state.
                self.spoil()

    def check(self, problem: BaseException | None = None) -> None:
        """Raise what broke down on the host or in the guests that a test has now, as Watch.check
        does. `problem` is what the test raised. The guests of a test that failed are looked at
        once, so that the same breakdown is not told again when the test gives them back."""
        guests = self._lent
        if problem is not None:
            self._lent = []
        if isinstance(problem, (KeyboardInterrupt, GeneratorExit, BreakdownError)):
            return
        try:
            self.watch.check(guests, problem)
        except HilError:
            self._lent = []
            raise

    @contextlib.contextmanager
    def remaining(self) -> Iterator[list[Guest]]:
        """Yield the guests that the last test left, as far as they still answer, so that their
        state can be examined."""
        left = self._current.identities if self._current else ()
        with contextlib.ExitStack() as stack:
            found = []
            for identity in left:
                with contextlib.suppress(HilError):
                    found.append(stack.enter_context(guest.attach(self.host.session, identity)))
            yield found

    def spoil(self) -> None:
        """Do not share the guests that run now with another test."""
        if self._current:
            self._current.spoiled = True

    def clear(self) -> None:
        """End all guests and give their devices back to the host."""
        self._end()
        pci.release(self.host.session, list(self.host.devices))

    def _end(self) -> None:
        """End all guests. The host keeps their devices assigned: the next guest has most of them,
        and to bind one anew takes half a second, and longer on real hardware."""
        session = self.host.session
        for name, status in session.processes().items():
            if status is None:
                session.kill(name)
        self._current = None

    @contextlib.contextmanager
    def only(
        self, specs: Sequence[description.GuestSpec], *, alone: bool = False
    ) -> Iterator[None]:
        """Refuse, inside the context, guests that need other devices than these descriptions.
        `alone` says that nobody in this run asks for such guests after the context."""
        self._declared = Counter(spec.needs for spec in specs)
        self._alone = alone
        try:
            yield
        finally:
            self._declared = None
            self._alone = False
            self._booted.clear()

    def choose(self, specs: Sequence[description.GuestSpec]) -> list[list[AssignedDevice]]:
        """Return the devices that each guest gets when these are asked for together. The choice is
        the same each time. Raises MissingDevicesError, and HarnessError for guests that `only`
        refuses."""
        self._check_declared(specs)
        kinds = self.host.description.devices
        candidates = [
            Candidate(bdf, kinds[bdf], one.iommu) for bdf, one in self.host.devices.items()
        ]
        chosen = choose(self.host.name, [spec.needs for spec in specs], candidates)
        return [place(spec, bdfs, kinds) for spec, bdfs in zip(specs, chosen, strict=True)]

    # -- how -------------------------------------------------------------------------------

    def _check_declared(self, specs: Sequence[description.GuestSpec]) -> None:
        if self._declared is None:
            return
        asked = Counter(spec.needs for spec in specs if any(spec.needs))
        for needs in asked - self._declared:
            devices = "; ".join(", ".join(f"a {one}" for one in smmu) for smmu in needs)
            raise HarnessError(
                f"the test asks for a guest with other devices than it declares: {devices}",
                fix="describe each guest that the test asks for in its mark: "
                "@pytest.mark.guest(GuestSpec(...)), so that it is known before the test runs what "
                "it needs of a host",
            )

    def _key(self, placed: Sequence[_Placed]) -> str:
        """Return the name of a set of guests. It depends on their command lines and on what is in
        the files that they, or others on their host, are started from: what was copied to the host
        is in the folder of a session, and each has another."""
        versions = self.host.versions_of_files
        files = replace(self.host.files, **versions)
        nowhere = description.Paths("")
        parts = [repr(sorted(versions.items()))]
        for spec, devices in placed:
            qemu = description.arguments(spec, devices, files, nowhere)
            # A set of abilities has another order in each process.
            chosen = [f"{replace(device, need=ANY)} for a {device.need}" for device in devices]
            program = spec.boundary and spec.boundary.package
            parts.append(repr((chosen, program, description.launch(spec, qemu, nowhere))))
        return "guest-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def _anew(
        self,
        key: str,
        placed: Sequence[_Placed],
        freshness: Freshness,
        stack: contextlib.ExitStack,
    ) -> list[Guest]:
        """Return guests that nobody has had. A snapshot from which they do not come is not used
        again."""
        if "snapshot" not in self.host.capabilities or freshness is Freshness.COLD:
            self._boot(key, placed)
            return self._attached(stack)
        try:
            self._restore(key, placed)
            return self._attached(stack)
        except HilError:
            self.host.snapshots.discard(key)
            raise

    def _attached(self, stack: contextlib.ExitStack) -> list[Guest]:
        assert self._current is not None
        return [
            stack.enter_context(guest.attach(self.host.session, identity))
            for identity in self._current.identities
        ]

    def _shared(self, key: str, stack: contextlib.ExitStack) -> list[Guest] | None:
        """Return the guests that run now if they are the ones asked for and work; else None.

        A test may pass and still leave a guest that crashed, is stopped or is shutting down.
        """
        if self._current is None or self._current.key != key or self._current.spoiled:
            return None
        with contextlib.ExitStack() as attempt:
            try:
                running = self._attached(attempt)
                for one in running:
                    if one.monitor.execute("query-status")["status"] != "running":
                        return None
                    one.run("true", timeout=10)
            except HilError:
                return None
            stack.push(attempt.pop_all())
            return running

    def _restore(self, key: str, placed: Sequence[_Placed]) -> None:
        with self.host.snapshots.held(key) as there:
            if there:
                self._current = None
                self.watch.forget()
                with step(f"restore snapshot {key}"):
                    note = self.host.restore(key)
                self._current = _Running(key, _IDENTITIES.validate_json(note))
                return
        self._boot(key, placed)
        # Whoever restores the snapshot is not told any more what broke down before.
        self.check()
        lasting = self._lasts()
        if lasting or self._asked_again(key):
            assert self._current is not None
            note = _IDENTITIES.dump_json(self._current.identities).decode()
            self.host.save(key, note, lasting=lasting)  # they run on as they were saved

    def _lasts(self) -> bool:
        """Return whether later runs may have what this one boots now. Other software is another one
        each time; a host that stays up may have been changed by hand; and a kernel that has
        reported a bug may not report it again."""
        return (
            self.lasting
            and self.host.ends_with_run
            and not self.host.digests
            and not self.host.session.kernel_has_reported
        )

    def _asked_again(self, key: str) -> bool:
        """Return whether this run will ask again for these guests, which were just booted, as far
        as that is known. A snapshot takes a second and some 400 MB, and a host that goes down with
        the run takes it with it."""
        first = key not in self._booted
        self._booted.add(key)
        return not (first and self._alone and self.host.ends_with_run)

    def _boot(self, key: str, placed: Sequence[_Placed]) -> None:
        self._end()
        self.watch.forget()
        self.host.assign([device.host_bdf for _, devices in placed for device in devices])
        identities = []
        for number, (spec, devices) in enumerate(placed):
            identities.append(self._boot_one(f"guest{number}", spec, devices))
        self._current = _Running(key, tuple(identities))

    def _boot_one(
        self, name: str, spec: description.GuestSpec, devices: Sequence[AssignedDevice]
    ) -> Identity:
        session, files = self.host.session, self.host.files
        try:
            with (
                step(f"boot {name}"),
                guest.booted(session, name, spec, devices, files, self.progress) as running,
            ):
                exact = EXACT_EVENTS in self.host.capabilities
                return replace(running.identity, exact_events=exact)
        except guest.QemuRefusedError:
            # Somebody may have opened a device that stayed assigned: that is not QEMU's failure.
            self.host.refuse_used([device.host_bdf for device in devices])
            raise
