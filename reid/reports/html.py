"""HTML pages from the templates in this package: one file per page, without scripts or links, which opens offline."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from reid.data.image_file import open_rgb
from reid.reports.tables import explain_column, percent

THUMBNAIL_PX = 256  # longest side of an image inside a page
CHART_COLORS = 256  # of a chart inside a page: a third of the bytes, and no difference that can be seen


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of `values`. All text is escaped; a name without a value is an error."""
    import jinja2  # here, because most programs that import this module write no page
    import markupsafe

    def breakable(name: str) -> markupsafe.Markup:
        """Let a long name break after an underscore or a slash."""
        escaped = str(markupsafe.escape(name))
        return markupsafe.Markup(escaped.replace("_", "_<wbr>").replace("/", "/<wbr>"))  # nosec: escaped above

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reid.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, png_url=png_url, thousands="{:,}".format, thumbnail_url=thumbnail_url, breakable=breakable,
        explain_column=explain_column,
    )  # fmt: skip
    return environment.get_template(template).render(values)


def png_url(content: bytes) -> str:
    """Return the PNG of a chart, with CHART_COLORS colors, as a data URL."""
    few = open_rgb(content).quantize(CHART_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def thumbnail_url(pixels: np.ndarray, longest: int = THUMBNAIL_PX) -> str:
    """Return an image (H, W, 3) uint8 as the data URL of a JPEG whose sides are at most `longest`."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
