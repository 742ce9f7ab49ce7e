"""The person that clients with Pydantic ask for: with an example, a tuple, and a union by a discriminator."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Person(BaseModel):
    name: str = Field(json_schema_extra={"example": "Grace"})
    age: int
    home: tuple[float, str]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def as_json(person: Any) -> Any:
    """The object as JSON has it."""
    return person.model_dump(mode="json")
