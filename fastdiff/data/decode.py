"""Decodes pictures of others within limits, and brings them to one size and number of channels.

Transparent pictures are laid over white. A camera's orientation (EXIF) is applied. 16-bit grey
levels keep their upper 8 bits, as Pillow does it for 16-bit colours. Of an animation the first
picture counts.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from ..outside import shown
from .options import CROP_SHARE, FILTERS, Options

ENCODED = 1 << 28  # bytes of a file
PIXELS = 1 << 26  # of a picture
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
# formats that Pillow decodes by itself; EPS, for instance, would start another program
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset(
    ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .pbm".split()  # in lower case
)


class Unreadable(ValueError):
    """A picture that can't be used; the message is what was found, as part of a sentence."""


def decode(content: bytes | np.ndarray) -> Image.Image:
    """Returns a picture in mode L or RGB, from an encoded file or from levels uint8 [H, W, C].

    Raises Unreadable for anything else, and for more than `PIXELS`.
    """
    if isinstance(content, np.ndarray):
        return _opaque(Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about bombs, which are refused
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > PIXELS:
                raise Unreadable(
                    f"{image.width} by {image.height} pixels, which are more than {PIXELS}"
                )
            image.load()
            return _opaque(_upright(image))
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("content of no known format" if content else "an empty file") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Unreadable(f"damaged content ({shown(reason)[:120]})") from None


def channels_of(image: Image.Image) -> int:
    """Returns 1 for a grey picture and 3 for any other."""
    return 1 if image.mode == "L" else 3


def prepare(image: Image.Image, options: Options, channels: int) -> np.ndarray:
    """Returns the levels uint8 [C, H, W] of a picture in mode L or RGB.

    With options.size they are square: of that size, or larger where a random crop will follow. A
    picture that has the size already is not resampled.

    Raises Unreadable for a colour picture where grey ones are expected and not asked for.
    """
    if image.mode == "RGB" and channels == 1:
        if options.channels is None:
            raise Unreadable("a colour picture, unlike the first one, so pass --channels 1 or 3")
        image = image.convert("L")
    elif image.mode == "L" and channels == 3:
        image = image.convert("RGB")
    if options.size is not None:
        side = cut_from(options)
        if image.size != (side, side):
            short = min(image.size)
            left, top = (image.width - short) / 2, (image.height - short) / 2
            box = (left, top, left + short, top + short)
            image = image.resize((side, side), FILTERS[options.filter], box=box)
    levels = np.asarray(image)
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


def cut_from(options: Options) -> int:
    """Returns the side of the squares that pictures are resampled to."""
    assert options.size is not None
    return round(options.size / CROP_SHARE) if options.random_crop else options.size


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # metadata that is damaged turns nothing
        return image


def _opaque(image: Image.Image) -> Image.Image:
    """Returns the picture in mode L or RGB, over white. Raises Unreadable for other numbers."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable("numbers of 32 bits, so convert them to 8-bit levels")
    if image.mode == "1":
        return image.convert("L")
    grey = image.mode in ("L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGB", image.size, "white")
        under.paste(image, mask=image.getchannel("A"))
        return under.getchannel(0) if grey else under
    return image.convert("RGB")
