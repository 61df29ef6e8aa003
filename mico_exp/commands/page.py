"""Pages that stand alone: templates of this package, with their pictures in them."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Fill a template; a value that it names and is not given is an error."""
    pages = Environment(
        loader=PackageLoader("mico_exp"), autoescape=True, undefined=StrictUndefined
    )
    pages.filters |= filters
    return pages.get_template(template).render(**values)


def embedded(image: bytes) -> str:
    """A PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(image).decode()
