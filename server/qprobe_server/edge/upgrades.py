"""HTTP/1.1 requests that offer another protocol, which no server has to take.

Java's HttpClient offers ``Upgrade: h2c`` with its requests. The parser behind uvicorn's fast
protocol takes such a request to end with its head, and uvicorn then loses the body.

Relies on uvicorn 0.54: ``HttpToolsProtocol`` (protocols/http/httptools_impl.py); follows how it
hands a request over to its WebSocket protocol.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["UpgradeIgnoringProtocol"]


class UpgradeIgnoringProtocol(HttpToolsProtocol):
    """Reads a request that offers an upgrade as if it did not; WebSockets stay uvicorn's own."""

    def data_received(self, data: bytes) -> None:
        """Take what the client has sent."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
            except httptools.HttpParserUpgrade as stopped:
                if self._makes_offer():
                    # Again, without the offer, and then what came after the head.
                    data = self._make_head() + data[stopped.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # uvicorn's
                    continue
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                else:
                    self._unsupported_upgrade_warning()
            return

    def on_headers_complete(self) -> None:
        """Begin a request, unless it is read again."""
        if not self._makes_offer():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request likewise."""
        if not self._makes_offer():
            super().on_message_complete()

    def _makes_offer(self) -> bool:
        if not self.parser.should_upgrade():
            return False
        return self._get_upgrade() not in (None, b"websocket")

    def _make_head(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])
