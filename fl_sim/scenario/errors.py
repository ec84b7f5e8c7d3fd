"""One sentence for a mistake in a scenario: the key, the rule and the value found."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from attacks.registry import nearest
from fl_sim.errors import UserError

Validated = TypeVar("Validated", bound=BaseModel)

_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "literal_error": "{expected}",
    "greater_than": "above {gt:.15g}",
    "greater_than_equal": "at least {ge:.15g}",
    "less_than": "below {lt:.15g}",
    "less_than_equal": "at most {le:.15g}",
}
"""pydantic's type of error -> what the value must be; the letters are those of its context."""


def validated(model: type[Validated], values: Mapping[str, Any]) -> Validated:
    """Validate a mapping.

    Raises:
        UserError: names the first key that is wrong, the rule and the value found.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(describe(error, model)) from error


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """Turn the first error of a validation into one sentence.

    A field's `description`, where it has one, is its rule: it speaks for a union as a whole, of
    which pydantic reports each branch.

    Args:
        error: what pydantic raised.
        root: the model that was validated.
    """
    first = error.errors()[0]
    place, field, section = _walk(first["loc"], root)
    key = ".".join(str(part) for part in place)
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{nearest(str(place[-1]), section.model_fields)}"
    if kind == "missing":
        return f"{key}: is required, found none"
    if kind == "value_error":
        return f"{key}: {context['error']}" if key else str(context["error"])
    rule = _RULES[kind].format(**context) if kind in _RULES else _own_rule(first["msg"])
    if field is not None and field.description:
        rule = field.description
    return f"{key}: must be {rule}, found {_show(first['input'])}"


def _own_rule(message: str) -> str:
    """Return pydantic's rule for a value, in one line; it may quote a pattern."""
    return " ".join(message.removeprefix("Input should be ").split())


def _walk(
    location: Sequence[int | str], root: type[BaseModel]
) -> tuple[list[int | str], FieldInfo | None, type[BaseModel]]:
    """Follow a location down the models.

    Returns:
        The location without pydantic's names of union branches; the field that it ends at, None
        where it ends at an item or an unknown key; the model that it ends in.
    """
    section, field = root, None
    for depth, part in enumerate(location):
        if isinstance(part, int):
            field = None
        elif part in section.model_fields:
            field = section.model_fields[part]
            section = _model_in(field.annotation) or section
        elif field is not None and _is_union(field.annotation):
            return list(location[:depth]), field, section
        else:
            field = None
    return list(location), field, section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, or a list of; None for a field that holds values."""
    if typing.get_origin(annotation) is list:
        return _model_in(typing.get_args(annotation)[0])
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _is_union(annotation: Any) -> bool:
    return hasattr(annotation, "__args__") and typing.get_origin(annotation) not in (list, dict)


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
