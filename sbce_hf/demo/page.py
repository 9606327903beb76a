"""The page on which a visitor tries a checkpoint: a photo and its tags in, a label map with its reasons out."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ..config import CrfConfig
from ..data.decoding import encode_png
from ..models.configuration_deeplab import voc_palette
from ..text import code_span, markdown
from .explain import Checkpoint, ClassReading, Explanation, explain, load_checkpoint
from .pictures import annotated, encode_label_map, example, outlined_heat_map, picture_address, served_file
from .uploads import mistake, read_photo, uploaded

# Seconds after which a visitor's files are deleted.
KEEP_SECONDS = 3600
MAX_HEAT_MAPS = 12
# A gallery's cells are square and its height is fixed; photos are neither, and a phone has room for one column.
CSS = """
#heat-maps .grid-wrap {max-height: none; min-height: 0}
#heat-maps .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); padding-top: 36px}
#heat-maps .thumbnail-lg {aspect-ratio: auto; height: auto}
footer {display: none !important}
"""
# Options of `launch()` that belong to the page.
LAUNCH: dict[str, Any] = {
    "theme": gr.themes.Soft(),
    "css": CSS,
    "max_file_size": "20mb",
    # What is raised for visitors is shown all the same; other messages name folders of the server.
    "show_error": False,
}

TABLE_HEADER = ["class", "image p", "threshold t", "mean p", "share"]
ADAPTIVE = """
For every class the network gives each pixel a probability *p*. To turn these into a label map, something has to say
where a class begins. Usually that is one constant for all photos and classes, tuned on drawn masks. Here the network
itself says it: a second output, the **threshold *t***, learned from image tags alone, different for every photo and
class. A pixel gets the class with the largest *p - t*, if that is above 0, else background.

In the class maps, bright is a high *p*, and the white line is where *p = t*. The label map may differ from that line
where two classes compete, and after the dense CRF, which moves borders to edges of the photo.
*Adaptive Spatial-BCE Loss for Weakly Supervised Semantic Segmentation*, ECCV 2022.

In the table, *image p* is how sure the network is that the class is on the photo at all, *mean p* the mean of its
class map, and *share* its part of the final label map.
"""


def table_rows(readings: Sequence[ClassReading]) -> list[list[str]]:
    """One row of [`TABLE_HEADER`] per known class."""
    return [
        [
            reading.name,
            f"{100 * reading.image_probability:.0f} %",
            f"{reading.threshold:.3f}",
            f"{reading.mean_probability:.3f}",
            f"{100 * reading.share:.1f} %",
        ]
        for reading in readings
    ]


def remarks(size: tuple[int, int], found: Explanation, names: Sequence[str], predicted: bool) -> str:
    """What is to say about a result: the photo's size, its shares, and why there may be nothing on it."""
    shares = np.bincount(found.label_map.ravel(), minlength=len(names)) / found.label_map.size
    order = [value for value in np.argsort(-shares, kind="stable").tolist() if shares[value] > 0]
    parts = ["**" + ", ".join(f"{markdown(names[value])} {100 * shares[value]:.1f} %" for value in order) + "**"]
    if predicted and not found.readings:
        nearest = [f"{markdown(name)} {100 * p:.0f} %" for name, p in list(found.image_probabilities.items())[:3]]
        parts.append(
            f"No class reached 50 %, so all is background. Choose tags instead. The nearest: {', '.join(nearest)}."
        )
    if len(found.readings) > MAX_HEAT_MAPS:
        parts.append(f"Heat maps of the {MAX_HEAT_MAPS} most probable classes are shown.")
    height, width = found.label_map.shape
    parts.append(
        f"The label map has the photo's {size[0]} x {size[1]} pixels"
        + (f"; what was looked at has {width} x {height}." if (width, height) != size else ".")
    )
    return "  \n".join(parts)


def build_demo(checkpoint: str, image_size: int | None = None) -> gr.Blocks:
    """The page for one checkpoint.

    Args:
        checkpoint: a model folder, or a Hub id with an optional `@revision`.
        image_size: see [`load_checkpoint`].

    Raises:
        OSError: there is no such checkpoint.
        ValueError: a model that the page cannot show.
    """
    loaded = load_checkpoint(checkpoint, image_size)
    return _page(loaded, classifier=loaded.needs_tags)


def message_page(message: str) -> gr.Blocks:
    """A page that only says what is wrong, for a Space whose checkpoint is missing.

    Args:
        message: Markdown.
    """
    with gr.Blocks(title="sbce_hf", analytics_enabled=False) as page:
        gr.Markdown(f"# No checkpoint to show\n\n{message}")
    return page


def _page(loaded: Checkpoint, classifier: bool) -> gr.Blocks:
    names = loaded.names
    with gr.Blocks(
        title="Label maps from image tags", analytics_enabled=False, delete_cache=(600, KEEP_SECONDS)
    ) as page:
        gr.Markdown(_introduction(loaded, classifier))
        with gr.Row():
            with gr.Column(min_width=300):
                photo = gr.Image(
                    label="Photo", type="filepath", sources=["upload", "clipboard"], height=320, elem_id="photo"
                )
                # gradio opens the file itself, and its message about a damaged one names a temporary path.
                photo.preprocess = lambda payload: uploaded(payload, photo.GRADIO_CACHE)  # type: ignore[method-assign]
                tags, predict = _tag_inputs(names[1:]) if classifier else (gr.State([]), gr.State(False))
                crf = gr.Checkbox(
                    label="Dense CRF: follow the edges of the photo",
                    value=classifier,
                )
                button = gr.Button("Label the photo", variant="primary", elem_id="run")
                _add_example(names, photo, tags)
            with gr.Column(min_width=300):
                # Lighter than in the file: VOC's dark blue and maroon hide a photo instead of tinting it.
                colours = np.minimum(np.array(voc_palette(len(names))) + 90, 255).astype(np.uint8)
                painted = gr.AnnotatedImage(
                    label="Label map",
                    color_map={
                        name: f"#{colour.tobytes().hex()}" for name, colour in zip(names, colours, strict=True)
                    },
                    height=320,
                    elem_id="overlay",
                )
                said = gr.Markdown("The label map appears here.", elem_id="said")
                download = gr.DownloadButton("Download the label map (PNG, exact indices)", interactive=False)
        outputs: list[Any] = [painted, said, download]
        if classifier:
            outputs += _reasons()
            with gr.Accordion("What is the adaptive threshold?", open=False):
                gr.Markdown(ADAPTIVE)
        button.click(
            _handler(loaded, classifier, download),
            [photo, tags, predict, crf],
            outputs,
            api_name="label",
            show_progress_on=painted,
            concurrency_limit=1,
        )
    # Every request waits its turn: the model is one, and files of equal content have equal names.
    return page.queue(max_size=20, api_open=False)


def _introduction(loaded: Checkpoint, classifier: bool) -> str:
    first = (
        "Say what is on a photo, and this network draws it: a classifier trained on image tags alone, without "
        "a single drawn mask."
        if classifier
        else "A segmentation network: it needs no tags."
    )
    shown = [name for name in loaded.names if name != "background"]
    known = ", ".join(map(markdown, shown[:30])) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")
    # Of a folder, where it lies on the server is nobody's business.
    name = "/".join(Path(loaded.name).parts[-2:]) if os.path.isdir(loaded.name) else loaded.name
    return (
        f"# Label maps from image tags\n\n{first}  \n"
        f"Checkpoint {code_span(name)}, {len(shown)} classes: {known}.  \n"
        f"Photos and results are deleted from the server after about {KEEP_SECONDS // 60} minutes."
    )


def _tag_inputs(names: Sequence[str]) -> tuple[gr.Dropdown, gr.Checkbox]:
    tags = gr.Dropdown(
        list(names), multiselect=True, value=[], label="Tags", info="What is on the photo?", elem_id="tags"
    )
    predict = gr.Checkbox(label="Predict the tags instead", value=False, elem_id="predict")
    predict.change(
        lambda on: gr.update(interactive=not on), predict, tags, api_visibility="private", show_progress="hidden"
    )
    return tags, predict


def _add_example(names: Sequence[str], photo: gr.Image, tags: Any) -> None:
    """The example to look at, and a button that takes it.

    `gr.Examples` would write the picture's file into the page's settings, with its path on the server.
    """
    picture, known = example(names)
    content = encode_png(picture)
    other = "" if known else " (its kites and lanterns are no classes of this checkpoint)"
    gr.HTML(f'<img src="{picture_address(picture)}" alt="" style="height: 100px">', elem_id="example-picture")
    button = gr.Button(f"Take this example, drawn by the program{other}", size="sm", elem_id="example")

    def take() -> list[Any]:
        return [served_file(content, "example.png", photo.GRADIO_CACHE), *([known] if known else [])]

    button.click(take, None, [photo, *([tags] if known else [])], api_visibility="private", show_progress="hidden")


def _reasons() -> list[Any]:
    gallery = gr.Gallery(
        label="Class maps with their thresholds",
        columns=3,
        format="jpeg",
        visible=False,
        elem_id="heat-maps",
    )
    table = gr.Dataframe(headers=TABLE_HEADER, label="Numbers", interactive=False, visible=False, elem_id="numbers")
    return [gallery, table]


def _handler(loaded: Checkpoint, classifier: bool, download: gr.DownloadButton) -> Callable[..., list[Any]]:
    def label(path: str | None, tags: list[str] | None, predict: bool, crf: bool) -> list[Any]:
        photo, size = read_photo(path)
        if classifier and not predict and not tags:
            gr.Warning("No tag was chosen, so everything is background. Choose tags, or let them be predicted.")
        try:
            found = explain(loaded, photo, None if predict else tags or [], CrfConfig() if crf else None)
        except ValueError as error:
            raise mistake(str(error)) from error
        if classifier and predict and not found.readings:
            gr.Warning("No class was recognised, so everything is background.")
        cache = download.GRADIO_CACHE
        file = served_file(encode_label_map(found.label_map, size), "label_map.png", cache)
        picture, sections = annotated(photo, found.label_map, loaded.names)
        said = remarks(size, found, loaded.names, predict)
        shown: list[Any] = [
            (served_file(encode_png(picture), "photo.png", cache), sections),
            said,
            gr.update(value=file, interactive=True),
        ]
        if classifier:
            heat_maps = [
                (
                    served_file(encode_png(outlined_heat_map(photo, reading)), "class_map.png", cache),
                    f"{reading.name}: t = {reading.threshold:.3f}",
                )
                for reading in found.readings[:MAX_HEAT_MAPS]
            ]
            shown += [
                gr.update(value=heat_maps, visible=bool(heat_maps)),
                gr.update(value=table_rows(found.readings), visible=bool(heat_maps)),
            ]
        return shown

    return label
