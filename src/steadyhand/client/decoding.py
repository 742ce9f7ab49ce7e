"""Decode JSON objects into frozen dataclasses, by the types of their fields.

Fields that this version does not know are kept apart in `extra`. A field that is missing, that is null though its type
is never `None`, or whose value has another type has its default, and the value is in `extra` as well. So a type is a
promise, and a newer service does not break a client. Only a field without a default must be readable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceObject:
    """An object of the service.

    `extra` has the fields that this version of the client does not know or cannot read; `document` is the whole JSON
    object as received.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    document: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


T = TypeVar("T")
ObjectT = TypeVar("ObjectT", bound=ServiceObject)
Decoder = Callable[[Any], Any]

_TYPE_FIELD = "object"  # tells the type of the object, which the class does here
_OWN_FIELDS = frozenset(each.name for each in fields(ServiceObject))


class UnexpectedValue(ValueError):
    """A value that its field cannot have; the text begins with the path of the field."""


def decode(kind: type[ObjectT], value: Any) -> ObjectT:
    """Return the object of this type that a JSON object describes. Raise `UnexpectedValue` if it does not."""
    if not isinstance(value, dict):
        raise UnexpectedValue(f": is no {kind.__name__}")
    decoders = _field_decoders(kind)  # type: ignore[arg-type]  # a class is hashable, its objects are not
    values: dict[str, Any] = {}
    unreadable: dict[str, Any] = {}
    for name, (decoder, has_default, nullable) in decoders.items():
        each = value.get(name, MISSING)
        if each is MISSING or (each is None and not nullable):
            if not has_default:
                raise UnexpectedValue(f"{name}: is missing")
            continue
        try:
            values[name] = decoder(each)
        except UnexpectedValue as error:
            if not has_default:
                raise UnexpectedValue(_joined(name, str(error))) from error
            unreadable[name] = each
    extra = {name: each for name, each in value.items() if name not in decoders and name != _TYPE_FIELD}
    return kind(**values, extra={**extra, **unreadable}, document=value)


def _joined(name: str, rest: str) -> str:
    return f"{name}{rest}" if rest.startswith((":", "[")) else f"{name}.{rest}"


@cache
def _field_decoders(kind: type[ServiceObject]) -> Mapping[str, tuple[Decoder, bool, bool]]:
    """Return for each field its decoder, and whether it has a default and may be `None`."""
    hints = get_type_hints(kind)
    found = {}
    for each in fields(kind):
        if each.name not in _OWN_FIELDS:
            hint = hints[each.name]
            has_default = each.default is not MISSING or each.default_factory is not MISSING
            found[each.name] = _decoder(hint), has_default, hint is Any or NoneType in get_args(hint)
    return found


def _decoder(hint: Any) -> Decoder:
    if hint is Any:
        return _unchanged
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return _optional(_decoder(inner))
    if origin is tuple:
        return _items(_decoder(arguments[0]))
    if origin is Mapping:
        return _checked(dict, "object")
    if is_dataclass(hint):
        return lambda value: decode(hint, value)  # type: ignore[type-var,arg-type]  # each of these is a ServiceObject
    return _SCALARS[hint]


def _unchanged(value: Any) -> Any:
    return value


def _optional(decoder: Decoder) -> Decoder:
    return lambda value: None if value is None else decoder(value)


def _items(decoder: Decoder) -> Decoder:
    def decode_items(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise UnexpectedValue(": is no list")
        items = []
        for index, each in enumerate(value):
            try:
                items.append(decoder(each))
            except UnexpectedValue as error:
                raise UnexpectedValue(_joined(f"[{index}]", str(error))) from error
        return tuple(items)

    return decode_items


def _checked(kind: type, name: str) -> Decoder:
    def check(value: Any) -> Any:
        # A boolean is an int for Python alone.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UnexpectedValue(f": is no {name}")
        return value

    return check


def _decode_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnexpectedValue(": is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise UnexpectedValue(": is too large") from error


def _decode_amount(value: Any) -> Decimal:
    try:
        amount = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation as error:
        raise UnexpectedValue(": is no amount") from error
    if amount is None or not amount.is_finite():
        raise UnexpectedValue(": is no amount")
    return amount


def _decode_time(value: Any) -> datetime:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError as error:
        raise UnexpectedValue(": is no time") from error
    if time is None or time.tzinfo is None:
        raise UnexpectedValue(": is no time with a zone")
    return time


def _decode_date(value: Any) -> date:
    try:
        if isinstance(value, str):
            return date.fromisoformat(value)
    except ValueError as error:
        raise UnexpectedValue(": is no date") from error
    raise UnexpectedValue(": is no date")


_SCALARS: Mapping[Any, Decoder] = {
    str: _checked(str, "text"),
    int: _checked(int, "integer"),
    bool: _checked(bool, "boolean"),
    float: _decode_float,
    Decimal: _decode_amount,
    datetime: _decode_time,
    date: _decode_date,
}
