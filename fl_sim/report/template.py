"""The templates of pages, and how numbers are written in them."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fl_sim import wording


def template(name: str) -> Template:
    """Return a template of this folder."""
    environment = Environment(
        loader=PackageLoader("fl_sim.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in ("percent", "db", "scientific", "seconds", "number", "epsilon"):
        environment.filters[filter_] = getattr(wording, filter_)
    return environment.get_template(name)
