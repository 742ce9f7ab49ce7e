"""The operations page: HTML over the same `Control` as the API, for a person with a browser.

The templates and the files of the browser are in `templates/` and `static/`. The code of the pages, and Jinja, are
loaded at the first page.
"""

from steadyhand.web.lazy_routes import create_routes

__all__ = ["create_routes"]
