"""A PDU that labgrid knows turns a host on and off: labgrid's module speaks to a server here."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness.errors import LabError
from harness.host.power import PowerState, PowerUnsupportedError
from harness.power import pdu, settle
from harness.power.kinds import PowerEntry
from harness.power.pdu import PduPower


class Pdu(ThreadingHTTPServer):
    """A PDU as labgrid's model simplerest has it: /INDEX/VALUE sets a socket, /INDEX asks it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.on: dict[str, bool] = {}
        self.did: list[str] = []
        #: What it answers each request with.
        self.status = 200

    @property
    def power(self) -> PduPower:
        where = f"http://127.0.0.1:{self.server_address[1]}"
        return PduPower(model="simplerest", address=where + "/{index}/{value}", index=3)


class _Requests(BaseHTTPRequestHandler):
    server: Pdu

    def do_GET(self) -> None:
        _, index, *value = self.path.split("/")
        if value:
            self.server.on[index] = value[0] == "1"
            self.server.did.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"1" if self.server.on.get(index) else b"0")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def there() -> Iterator[Pdu]:
    with Pdu() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_socket_is_turned_on_and_off(there: Pdu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "OFF_SECONDS", 0.0)
    control = PowerEntry(pdu=there.power).control("grace-1")
    assert control.state() is PowerState.OFF
    control.on()
    assert control.state() is PowerState.ON
    control.cycle()
    control.off()
    assert control.state() is PowerState.OFF
    assert there.did == ["/3/1", "/3/0", "/3/1", "/3/0"]


def test_a_pdu_sends_no_interrupt(there: Pdu) -> None:
    with pytest.raises(PowerUnsupportedError, match="PDU of host grace-1 sends no diagnostic"):
        there.power.control("grace-1").nmi()


def test_a_pdu_that_does_not_answer_is_told(there: Pdu, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = there.power.model_copy(update={"address": "http://127.0.0.1:1/{index}/{value}"})
    with pytest.raises(LabError, match=r"PDU simplerest of host grace-1 .*refused"):
        gone.control("grace-1").on()
    monkeypatch.setattr(pdu, "ANSWER_SECONDS", 0.0)
    with pytest.raises(LabError, match="no answer within 0 s"):
        there.power.control("grace-1").state()


@pytest.mark.parametrize("refuses", [True, False])
def test_a_password_in_its_address_is_not_shown(there: Pdu, refuses: bool) -> None:
    """Labs write it there, as http://USER:PASSWORD@HOST; labgrid's modules raise what has it."""
    port = there.server_address[1] if refuses else 1
    there.status = 401
    address = f"http://admin:hunt%40er2@127.0.0.1:{port}/{{index}}/{{value}}"
    entry = there.power.model_copy(update={"address": address})
    with pytest.raises(LabError) as caught:
        entry.control("grace-1").on()
    assert f"http://(secret)@127.0.0.1:{port}" in str(caught.value) or not refuses
    assert "hunt" not in str(caught.value)


def test_a_model_that_labgrid_does_not_know_is_told() -> None:
    strange = PduPower(model="nosuch", address="a")
    with pytest.raises(LabError, match="labgrid knows no PDU of the model nosuch"):
        strange.control("grace-1").state()


def test_labgrid_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "labgrid"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "labgrid", None)
    with pytest.raises(LabError, match=re.escape("pip install 'grace-smmu-hil[labgrid]'")):
        PduPower(model="netio", address="a").control("grace-1").state()
