"""Which files of a folder are photos, which look like photos and cannot be read, and which file a table means."""

import functools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from ..errors import UserError
from ..text import is_writable
from .decoding import open_formats

# Pillow tells what these are, and cannot read them by itself.
_ONLY_IDENTIFIED = frozenset({"BUFR", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
# Pictures that Pillow does not open, and what does.
_CONVERT = "convert it to jpg, png or tif"
UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "needs the plug-in pillow-heif: pip install 'sbce-hf[heif]'"),
    ".jxl": f"JPEG XL: {_CONVERT}",
    ".svg": f"a drawing, not a photo: {_CONVERT}",
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), f"a camera's raw file: {_CONVERT}"
    ),
}
# Of a name that could be written into no table, or broke it.
UNWRITABLE = "its name has control characters or is no UTF-8; rename it"
_NAMES_SIDE_FILE = "._"
# What macOS adds to archives, previews of Synology's, and Windows' bin; others have a dot before their name.
_KEPT_BY_PROGRAMS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
# A folder with both is a run directory.
_RUN = frozenset({"config.yaml", "run.json"})
# Label maps over their photos, beside the label store, and what is among them once all are drawn.
_OVERLAYS, _DRAWN = "overlays", "drawn.json"
_RESULTS = "a run, a label store or its overlays, whose pictures are results; they are not looked at"


@functools.cache
def photo_suffixes() -> frozenset[str]:
    """Endings of the files that can be opened, in small letters with their dot."""
    known = set(open_formats()) - _ONLY_IDENTIFIED
    # A camera's pair of JPEGs is opened as a JPEG, but has an ending of its own.
    return frozenset({suffix for suffix, kind in Image.registered_extensions().items() if kind in known} | {".mpo"})


def is_photo_name(name: str) -> bool:
    """Whether a text ends like the name of a photo."""
    return PurePosixPath(name.strip().replace("\\", "/")).suffix.lower() in photo_suffixes() | UNREAD.keys()


def check_name(path: Path) -> None:
    """Raise for a path that is no text, which datasets could not hold.

    Raises:
        UserError: its bytes are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: the name is no UTF-8; rename it") from error


def walk(folder: Path, exclude: Collection[Path] = ()) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Look for photos in a folder, at any depth.

    Args:
        folder: where to look; links in it to other folders are not followed.
        exclude: folders that are passed over without a word.

    Returns:
        the photos, sorted, and what looks like one or may hold some, each with the reason why it is left out.

    Raises:
        UserError: the folder's own name is no UTF-8.
    """
    check_name(folder)
    apart = {path.resolve() for path in exclude}
    photos: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    for root, folders, files in os.walk(folder):
        here = Path(root)
        if _RUN.issubset(files) or _DRAWN in files or _is_store(here):
            left_out.append((here, _RESULTS))
            folders.clear()
            continue
        # Overlays of a prediction that is not finished.
        unfinished = _OVERLAYS in folders and any(_is_store(here / name) for name in folders)
        for name in list(folders):
            path = here / name
            if path.is_symlink():
                left_out.append(
                    (path, "a link to a folder, which is not followed; give that folder itself, or copy it")
                )
            elif name.startswith(".") or name in _KEPT_BY_PROGRAMS:
                if any(is_photo_name(file) for _, _, inside in os.walk(path) for file in inside):
                    left_out.append((path, "a folder that programs keep for themselves; rename it if it is yours"))
            elif name == _OVERLAYS and unfinished and path.resolve() not in apart:
                left_out.append((path, _RESULTS))
            elif path.resolve() not in apart:
                continue
            folders.remove(name)
        for name in files:
            path = here / name
            suffix = path.suffix.lower()
            if suffix not in photo_suffixes() | UNREAD.keys():
                continue
            if name.startswith(_NAMES_SIDE_FILE):
                left_out.append((path, "a side file of macOS, not a photo; delete it"))
            elif not is_writable(path.relative_to(folder).as_posix()):
                left_out.append((path, UNWRITABLE))
            elif suffix not in photo_suffixes():
                left_out.append((path, UNREAD[suffix]))
            elif not path.is_file():
                left_out.append((path, "no file: a link to one that is not there, a folder, or a pipe"))
            else:
                photos.append(path)
    return sorted(photos), sorted(left_out)


def _is_store(folder: Path) -> bool:
    return (folder / "meta.json").is_file() and (folder / "label_maps").is_dir()


class Finder:
    """Finds the files that a table means, although it was made elsewhere.

    Args:
        files: that are there, relative to the folder of the photos, with slashes.

    Raises:
        UserError: two files whose names differ only in blanks at the ends, which tables do not keep.
    """

    def __init__(self, files: Sequence[str]) -> None:
        trimmed: dict[str, str] = {}
        for file in files:
            if (other := trimmed.setdefault(_trimmed(file), file)) != file:
                raise UserError(
                    f"photos {other!r} and {file!r}: their names differ only in blanks at the ends, which tables do "
                    "not keep; rename one of them"
                )
        self._exact = set(files)
        self._depth = 1 + max((file.count("/") for file in files), default=0)
        self._by_form: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for file in files:
            path = PurePosixPath(_form(file))
            self._by_form[str(path)].append(file)
            self._by_name[path.name].append(file)
            self._by_stem[path.stem].append(file)

    def find(self, name: str) -> tuple[str | None, str]:
        """The one file that is meant, and in what its name differs: letters, folder or ending.

        Args:
            name: as the table has it: with other slashes, another folder before it, another Unicode form or case,
                without its ending, or behind the eight signs that Label Studio puts before it.
        """
        name = name.strip().replace("\\", "/")
        if name in self._exact:
            return name, ""
        for tail in _tails(name, self._depth):
            file = tail if tail in self._exact else _only(self._by_form.get(_form(tail)))
            if file is not None:
                # Tables of the imagefolder convention count from the table's own folder.
                if name.removesuffix(tail) not in ("", "./", "images/"):
                    return file, "folder"
                return file, "" if _nfc(file) == _nfc(tail) else "letters"
        last = _form(PurePosixPath(name).name)
        for key in (last, last[9:] if last[8:9] == "-" else ""):
            if key and (file := _only(self._by_name.get(key))) is not None:
                return file, "folder"
        if not is_photo_name(name) and (file := _only(self._by_stem.get(last))) is not None:
            return file, "ending"
        return None, ""

    def candidates(self, name: str) -> list[str]:
        """The files that have the name's last part, where [`find`] cannot tell which is meant."""
        last = _form(PurePosixPath(name.strip().replace("\\", "/")).name)
        return self._by_name.get(last, []) or self._by_stem.get(last, [])


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _form(name: str) -> str:
    return _nfc(_trimmed(name)).casefold()


def _trimmed(name: str) -> str:
    return "/".join(part.strip() for part in name.split("/")) if " " in name else name


def _tails(name: str, depth: int) -> Iterator[str]:
    """What a name ends with, the longest first, of at most so many parts as a file has."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for start in range(max(len(parts) - depth, 0), len(parts)):
        yield "/".join(parts[start:])


def _only(found: Sequence[str] | None) -> str | None:
    return found[0] if found is not None and len(found) == 1 else None
