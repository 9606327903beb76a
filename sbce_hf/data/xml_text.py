"""XML from anywhere: elements and text only. What would name other files or grow on reading stops."""

from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import UserError
from ..files import read_bytes


def read_xml(path: Path) -> Element:
    """The root element of a file.

    Raises:
        UserError: no XML, or a document type, in which entities could be declared.
        OSError: it cannot be read.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(*declaration: object) -> NoReturn:
        raise UserError(
            f"{path}, line {parser.CurrentLineNumber}: declares a document type, which may name other files; expected "
            "plain XML. Remove the <!DOCTYPE ...>"
        )

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid XML: {error}") from error
    return builder.close()
