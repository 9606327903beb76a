"""The report as a page of one file: pictures are in it, nothing is loaded from elsewhere, no script runs."""

import base64
from io import BytesIO
from pathlib import Path

import jinja2
from PIL import Image

from ..text import visible
from .report import SKIPPED_SHOWN, ReportContext, facts
from .scores import per_class_table, score_table, segmenter_class_table, segmenter_table
from .tables import Strong

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
# A PNG with more bytes than this holds photos, which JPEG keeps in a tenth of them.
LARGEST_PNG, JPEG_QUALITY = 300_000, 85


def render_page(context: ReportContext, directory: Path) -> str:
    """The report as HTML.

    Every text of anybody is escaped, and control characters in it are shown as such.

    Args:
        context: see [`ReportContext`].
        directory: of the report, in which its pictures lie.

    Raises:
        OSError: a picture is not there.
    """
    # As a string and not by a loader, so that nothing but this file can be included.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        report=context,
        facts=facts(context),
        tables={
            "scores": score_table(context.scores),
            "per_class": per_class_table(context.scores),
            "segmenters": segmenter_table(context.segmenters),
            "segmenters_per_class": segmenter_class_table(context.segmenters),
        },
        shown=lambda text: visible("" if text is None else str(text), kept="\n"),
        picture=lambda name: data_uri(directory / name),
        is_strong=lambda cell: isinstance(cell, Strong),
        skipped_shown=SKIPPED_SHOWN,
    )
    return f"{page}\n"


def data_uri(path: Path) -> str:
    """A picture's file as an address that holds it; a large PNG becomes a JPEG."""
    content, kind = path.read_bytes(), "jpeg" if path.suffix == ".jpg" else "png"
    if kind == "png" and len(content) > LARGEST_PNG:
        buffer = BytesIO()
        with Image.open(BytesIO(content)) as picture:
            picture.convert("RGB").save(buffer, format="JPEG", quality=JPEG_QUALITY)
        content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
