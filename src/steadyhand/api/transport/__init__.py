"""HTTP below the routes: request context, authentication, parameters, bodies, errors, SSE and middleware."""
