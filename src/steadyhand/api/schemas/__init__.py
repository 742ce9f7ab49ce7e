"""Types of request bodies and responses, from which the OpenAPI document is made."""
