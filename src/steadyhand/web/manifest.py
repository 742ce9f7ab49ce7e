"""The manifest by which a browser installs the page as an app, such as on the home screen of a phone."""

from starlette.responses import Response

from steadyhand.api.transport.errors import json_response
from steadyhand.web.web_app import Visit

_ICONS = (
    ("icon-192.png", "192x192", "any"),
    ("icon-512.png", "512x512", "any"),
    ("icon-maskable-512.png", "512x512", "maskable"),
    ("icon.svg", "any", "any"),
)
"""The files that `tools/icons.py` draws from the last one; their sizes, and their purposes."""


async def show_manifest(visit: Visit) -> Response:
    """Send the manifest; it needs no session."""
    icons = [
        {
            "src": visit.app.files.url(name),
            "sizes": sizes,
            "type": "image/svg+xml" if name.endswith(".svg") else "image/png",
            "purpose": purpose,
        }
        for name, sizes, purpose in _ICONS
    ]
    document = {
        "id": "/",
        "name": "Steadyhand",
        "short_name": "Steadyhand",
        "start_url": "/",
        "scope": "/",
        "display": "standalone",
        "background_color": "#15181a",
        "theme_color": "#1f5f5b",
        "icons": icons,
    }
    return json_response(
        document, headers={"cache-control": "no-cache"}, media_type="application/manifest+json"
    )
