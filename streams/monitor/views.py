"""The monitor's web views: the live page, `/api/state`, `/metrics` and `/healthz`. All read, none writes.

Every answer passes one guard. A page of another site can make a browser ask this server under a name that it
controls (DNS rebinding), so while the server listens on the loopback only, the Host header must name the
loopback. The content security policy allows the page's own inline script and style by hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

import faust
import msgspec
from faust.web import Request, Response, View
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry

from streams.monitor.exposition import render
from streams.monitor.report import state_report
from streams.monitor.state import MonitorState

__all__ = ["add_views", "host_allowed", "page"]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def host_allowed(bound_to: str, header: str | None) -> bool:
    """Whether a Host header may be answered: the loopback's names; any, once the network may ask.

    >>> host_allowed("127.0.0.1", "localhost:6066"), host_allowed("127.0.0.1", "evil.example:6066")
    (True, False)
    """
    if bound_to not in LOOPBACK:
        return bool(header)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?", header or "")
    return match is not None and (match[1] or match[2]).lower() in LOOPBACK


def _hashes(html: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def page() -> tuple[bytes, str]:
    """The live page and its content security policy."""
    html = files("streams.monitor").joinpath("page.html").read_text("utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(html, 'script')}",
            f"style-src {_hashes(html, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return html.encode(), policy


class _GuardedView(View):
    """A view that answers GET and HEAD to allowed hosts, with headers that keep browsers strict."""

    bound_to = "127.0.0.1"
    policy = "default-src 'none'; frame-ancestors 'none'"

    async def dispatch(self, request: Any) -> Any:
        if host_allowed(self.bound_to, request.headers.get("Host")):
            response = await super().dispatch(request)
        else:
            response = self.text(
                "This server answers on the loopback only: use http://127.0.0.1.", status=403
            )
        response.headers.update(
            {
                "Content-Security-Policy": self.policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Cache-Control": "no-store",
            }
        )
        return response


def _since_ms(request: Any) -> int:
    """`?since=` in ms; anything that is not a number means: the whole history."""
    text = request.query.get("since", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0


def add_views(app: faust.App, state: MonitorState, registry: CollectorRegistry, bound_to: str) -> None:
    """Serve the four views on Faust's web server."""
    html, page_policy = page()

    class Guarded(_GuardedView):
        pass

    Guarded.bound_to = bound_to

    class Page(Guarded):
        policy = page_policy

        async def get(self, request: Request) -> Response:
            response = self.bytes(html, content_type="text/html")
            response.headers["Content-Type"] = "text/html; charset=utf-8"
            return response

    class State(Guarded):
        async def get(self, request: Request) -> Response:
            body = msgspec.json.encode(state_report(state, _since_ms(request)))
            return self.bytes(body, content_type="application/json")

    class Metrics(Guarded):
        async def get(self, request: Request) -> Response:
            response = self.bytes(render(registry))
            response.headers["Content-Type"] = CONTENT_TYPE_PLAIN_0_0_4
            return response

    class Health(Guarded):
        async def get(self, request: Request) -> Response:
            status = 503 if state.broker_up is False else 200
            return self.text("broker down" if status == 503 else "ok", status=status)

    for path, view in {"/": Page, "/api/state": State, "/metrics": Metrics, "/healthz": Health}.items():
        app.page(path)(view)
