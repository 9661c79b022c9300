"""HTML pages from the templates in this package: one file per page, without scripts or links, which opens offline."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from reid.reports.tables import percent

THUMBNAIL_PX = 256  # longest side of an image inside a page


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of `values`. All text is escaped; a name without a value is an error."""
    import jinja2  # here, because most programs that import this module write no page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reid.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, png_url=png_url, thousands="{:,}".format, thumbnail_url=thumbnail_url)
    return environment.get_template(template).render(values)


def png_url(content: bytes) -> str:
    """Return a PNG file as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail_url(pixels: np.ndarray) -> str:
    """Return an image (H, W, 3) uint8 as the data URL of a JPEG whose sides are at most THUMBNAIL_PX."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
