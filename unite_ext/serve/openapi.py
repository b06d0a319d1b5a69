"""The description of the interface at /openapi.json."""

from __future__ import annotations

from fastapi import FastAPI


def describe(app: FastAPI, *, secured: bool) -> None:
    """Let an application's description be true: no 422, and the key where one is needed."""
    make = app.openapi

    def described() -> dict[str, object]:
        if app.openapi_schema is None:
            schema = make()
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if secured and path != "/health":
                        operation["security"] = [{"key": []}]
            schemas = schema.get("components", {}).get("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            if secured:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
