"""The metrics page over HTTP."""

from typing import Any

from aiohttp import web

from wattd.metrics.page import OPENMETRICS_TYPE, PROMETHEUS_TYPE, Page
from wattd.values import UserError

_HELLO = "wattd: the metrics are at /metrics\n"


class MetricsServer:
    """Serves the newest page to whoever asks and however often.

    Attributes:
        page: What is served; renewed by its owner.
        address: HOST:PORT that it listens on; empty before `start`.
    """

    def __init__(self) -> None:
        self.page = Page(())
        self.address = ""
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on HOST:PORT; port 0 takes a free one.

        Raises:
            UserError: It cannot be bound.
        """
        host, _, port = address.rpartition(":")
        application = web.Application()
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/", self._hello)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except (OSError, OverflowError) as error:
            await self._runner.cleanup()
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"metrics {address}: {reason}; name another --metrics HOST:PORT") from error
        bound: Any = self._runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        self.address = f"{shown}:{bound[1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        compressed = "gzip" in request.headers.get("Accept-Encoding", "")
        headers = {"Content-Type": OPENMETRICS_TYPE if openmetrics else PROMETHEUS_TYPE}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        body = self.page.render(openmetrics=openmetrics, compressed=compressed)
        return web.Response(body=body, headers=headers)

    @staticmethod
    async def _hello(_: web.Request) -> web.Response:
        return web.Response(text=_HELLO)
