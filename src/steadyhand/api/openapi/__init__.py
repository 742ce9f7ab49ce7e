"""The OpenAPI document, its examples and the routes that serve it."""
