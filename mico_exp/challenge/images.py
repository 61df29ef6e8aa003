"""Records that are images: folders of files, and data sets that torchvision reads from disk.

They are decoded to bytes (N, H, W, C), C = 1 of grey and 3 of colour images, and models see them
as (B, C, H, W) in [0, 1], or normalised by channel.
"""

import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mico_exp.challenge.arrays import PLACE, Arrays, Form, hash_of
from mico_exp.challenge.copies import Copied, Copy
from mico_exp.challenge.labels import check_same, order_of
from mico_exp.challenge.records import Records
from mico_exp.common import require
from mico_exp.common.errors import InputError, first_line, printable
from mico_exp.common.fingerprints import definition, digest

log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # of Pillow
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # of eight bits at most
KEPT = {"1": "L", "L": "L", "RGB": "RGB"}  # modes whose channels need not be told
UNPICKLED = ("LSUN", "LSUNClass")  # by torchvision, from a file that it does not check


class Picture(NamedTuple):
    """An image that is opened when it is needed, how messages call it, and its label."""

    name: str
    open: Callable[[], Image.Image]
    label: int


@dataclass(frozen=True)
class Look:
    """What images are brought to.

    size: height and width; None for those of the first image, which all are to have.
    resize: how Pillow resamples those of another size; None refuses them.
    channels: 1 for grey, 3 for colour; None for those of the first image, which all are to have.
    """

    size: tuple[int, int] | None
    resize: str | None
    channels: int | None

    @classmethod
    def told(cls, size: Any, resize: Any, channels: Any) -> "Look":
        """Make one of what an option says.

        Raises:
            InputError: names what cannot be meant.
        """
        if size is not None:
            size = (size, size) if isinstance(size, int) else size
            if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
                raise InputError(f"`{PLACE}.size` must be [height, width], got {size!r:.80}.")
            for length in size:
                require.whole(f"{PLACE}.size", length, 1)
            size = (size[0], size[1])
        if resize not in (None, *FILTERS) or (resize and size is None):
            raise InputError(
                f"`{PLACE}.resize` must be one of {', '.join(FILTERS)}, beside `size`, got "
                f"{resize!r:.80}."
            )
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise InputError(f"`{PLACE}.channels` must be 1 or 3, got {channels!r:.80}.")
        return cls(size, resize, channels)

    def pixels(self, image: Image.Image, name: str) -> Pixels:
        """Bytes (H, W, C) of an image."""
        if image.mode not in MODES:
            raise InputError(f"{name}: must be an image of 8 bits a channel, got {image.mode}.")
        if self.channels is None and image.mode not in KEPT:
            raise InputError(
                f"{name}: is neither grey nor colour alone, but {image.mode}: say "
                f"`{PLACE}.channels`, 1 or 3, which it is brought to."
            )
        mode = KEPT[image.mode] if self.channels is None else {1: "L", 3: "RGB"}[self.channels]
        image = image.convert(mode)
        if self.resize is not None and self.size is not None and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling[self.resize.upper()])
        return np.atleast_3d(np.asarray(image, np.uint8))

    def decoded(self, pictures: Iterable[Picture]) -> Iterator[Pixels]:
        """Bytes (H, W, C) of each image.

        Raises:
            InputError: names the first that cannot be read, or that is not as all are to be.
        """
        shape, first = None, ""
        for picture in pictures:
            pixels = self.pixels(_loaded(picture), picture.name)
            if shape is None:
                shape, first = (*(self.size or pixels.shape[:2]), pixels.shape[2]), picture.name
            if pixels.shape != shape:
                raise InputError(
                    f"{picture.name}: must be {_measures(shape)}, as {first} or "
                    f"`{PLACE}.size` has it, got {_measures(pixels.shape)}; `size` with `resize` "
                    "and `channels` bring all to the same."
                )
            yield pixels


def _loaded(picture: Picture) -> Image.Image:
    try:
        with picture.open() as image:
            image.load()
    except Exception as error:  # whatever Pillow makes of it
        raise InputError(
            f"{picture.name}: cannot be read as an image: {first_line(error)}"
        ) from error
    return image


def _measures(shape: Sequence[int]) -> str:
    height, width, channels = shape
    return f"{height} × {width} of {'one channel' if channels == 1 else f'{channels} channels'}"


def from_folder(
    folder: str,
    parts: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    size: int | Sequence[int] | None = None,
    resize: str | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    store: str | None = None,
) -> Records:
    """Load images from a folder with a folder for each class, as torchvision's `ImageFolder` does.

    They are in the order of `ImageFolder`: by class, then by path. Names that start with a dot
    are left out.

    Args:
        folder: with a folder for each class, or with one for each of `parts`.
        parts: folders in it, such as train and test, one after another.
        classes: names of the folders in the order of their numbers; None for ascending.
        size: height and width of all images, or one number for both; None for the first one's.
        resize: how those of another size are resampled, such as bilinear; None refuses them.
        channels: 1 or 3, that images are brought to; None leaves grey and colour as they are.
        mean: that is taken away from values in [0, 1], a number or one for each channel.
        std: that the rest is divided by, as `mean`.
        store: where the decoded images are kept; None decodes them every time.

    Raises:
        InputError: names the folder or image that is not what it must be.
    """
    look, form = Look.told(size, resize, channels), _form(mean, std)
    top = require.existing_folder(f"{PLACE}.folder", folder)
    places = [require.existing_folder(f"{PLACE}.parts", top / str(part)) for part in parts] or [top]
    order = _classes(places, classes)

    def pictures() -> tuple[int, Iterator[Picture]]:
        found = _files(places, order)
        return len(found), (
            Picture(str(path), partial(Image.open, path), label) for path, label in found
        )

    source = [str(place.absolute()) for place in places], order
    return _records(pictures, source, places, look, form, store)


def _classes(places: Sequence[Path], told: Sequence[str] | None) -> list[str]:
    """Names of the classes' folders, in the order of their numbers."""
    there = [
        sorted(one.name for one in place.iterdir() if one.is_dir() and one.name[0] != ".")
        for place in places
    ]
    order = there[0] if told is None else list(order_of(told))
    for place, names in zip(places, there, strict=True):
        odd = set(names) - set(order) if told is not None else set(names) ^ set(order)
        if odd or not names:
            wanted = printable(", ".join(order)) or "each class"
            found = f"{printable(min(odd))!r} in one alone" if odd else "none"
            raise InputError(f"{place}: must have folders of {wanted}; got {found}.")
    return order


def _files(places: Sequence[Path], order: Sequence[str]) -> list[tuple[Path, int]]:
    """Images of all classes, and the number of the class of each, part by part."""
    found = [
        (Path(folder, name), order.index(kind))
        for place in places
        for kind in sorted(order)
        for folder, _, names in sorted(os.walk(place / kind, followlinks=True))
        for name in sorted(names)
        if name[0] != "." and name.lower().endswith(ENDINGS)
    ]
    if missing := set(range(len(order))) - {label for _, label in found}:
        raise InputError(f"{places[0]}: has no images of class {printable(order[min(missing)])!r}.")
    return found


def from_torchvision(
    name: str,
    root: str,
    parts: Sequence[Mapping[str, Any]] = ({},),
    classes: Sequence[str] | None = None,
    size: int | Sequence[int] | None = None,
    resize: str | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    store: str | None = None,
) -> Records:
    """Load images of a data set of torchvision's that is on disk; nothing is downloaded.

    Args:
        name: of its class in `torchvision.datasets`, such as FashionMNIST.
        root: folder that the class reads.
        parts: the class's own arguments for each part, such as ``{train: true}``.
        classes: what the data set must name its classes, in its own order; None does not compare.
        size: height and width of all images, or one number for both; None for the first one's.
        resize: how those of another size are resampled, such as bilinear; None refuses them.
        channels: 1 or 3, that images are brought to; None leaves grey and colour as they are.
        mean: that is taken away from values in [0, 1], a number or one for each channel.
        std: that the rest is divided by, as `mean`.
        store: where the decoded images are kept; None decodes them every time.

    Raises:
        InputError: it is not there, or gives something else than an image and a class.
    """
    look, form = Look.told(size, resize, channels), _form(mean, std)
    place = require.existing_folder(f"{PLACE}.root", root)
    sound = isinstance(parts, Sequence) and all(isinstance(part, Mapping) for part in parts)
    if not sound or not parts:
        raise InputError(
            f"`{PLACE}.parts` must be a list of arguments, as [{{train: true}}, {{train: false}}], "
            f"got {parts!r:.80}."
        )
    if any("download" in part for part in parts):
        raise InputError(f"`{PLACE}.parts` must not have `download`: nothing is downloaded here.")

    def pictures() -> tuple[int, Iterator[Picture]]:
        sets = [_opened(name, place, part) for part in parts]
        for one in sets:
            if own := getattr(one, "classes", None):
                check_same(classes, [str(kind) for kind in own], name)
        return sum(map(len, sets)), chain.from_iterable(
            _items(one, f"{name} {json.dumps(part)}") for one, part in zip(sets, parts, strict=True)
        )

    source = name, str(place.absolute()), [dict(part) for part in parts], classes
    return _records(pictures, source, [place], look, form, store)


def _opened(name: str, root: Path, part: Mapping[str, Any]) -> Any:
    """A part of a data set of torchvision's."""
    from torchvision import datasets

    kind: Any = getattr(datasets, name, None) if name in datasets.__all__ else None
    sound = isinstance(kind, type) and name not in UNPICKLED
    if not sound:
        why = "reads a pickle, which is never opened" if name in UNPICKLED else "is none of them"
        raise InputError(f"`{PLACE}.name` must be a class of torchvision.datasets: {name!r} {why}.")
    never = {"download": False} if "download" in inspect.signature(kind).parameters else {}
    try:
        return kind(root, **part, **never)
    except Exception as error:  # each class has its own
        raise InputError(
            f"{root} does not hold {name} as torchvision reads it, and nothing is downloaded here: "
            f"{first_line(error)}"
        ) from error


def _items(part: Any, name: str) -> Iterator[Picture]:
    for number in range(len(part)):
        where = f"image {number} of {name}"
        try:
            image, label = part[number]
        except Exception as error:  # of a file that is missing or broken
            raise InputError(f"{where}: cannot be read: {first_line(error)}") from error
        if not isinstance(image, Image.Image) or not isinstance(label, (int, np.integer)):
            raise InputError(
                f"{where}: must be an image and the number of its class, got "
                f"{type(image).__name__} and {type(label).__name__}."
            )
        yield Picture(where, image.copy, int(label))


def _form(mean: Any, std: Any) -> Form:
    return Form.told("float32", "NHWC", 255.0, mean, std)


def _records(
    pictures: Callable[[], tuple[int, Iterator[Picture]]],
    source: object,
    places: Sequence[Path],
    look: Look,
    form: Form,
    store: str | None,
) -> Records:
    """Records of pictures, decoded now, or once for a store while nothing in `places` changes."""
    where = " and ".join(map(str, places))
    key = digest(json.dumps([source, asdict(look)]), definition(Look))
    copy = None if store is None else Copy(store, f"images-{key[:16]}", places)
    found = copy.found() if copy else None
    if found is None:
        log.info("Decoding the images of %s%s", where, ", once" if copy else "")
        count, some = pictures()
        labels: list[int] = []
        rows = look.decoded(_noted(some, count, labels))
        found = copy.make(rows, count, labels) if copy else _in_memory(rows, labels)
    form.check(found.array.dtype, found.array.shape, where)
    return Arrays(found.array, torch.tensor(found.labels), form, found.content)


def _noted(pictures: Iterable[Picture], count: int, labels: list[int]) -> Iterator[Picture]:
    """Pictures, whose labels are noted as they pass."""
    for picture in tqdm(pictures, desc="Decoding", total=count, unit="image", disable=None):
        labels.append(picture.label)
        yield picture


def _in_memory(rows: Iterable[Pixels], labels: list[int]) -> Copied:
    pixels = np.stack(list(rows))
    return Copied(pixels, labels, hash_of(pixels))
