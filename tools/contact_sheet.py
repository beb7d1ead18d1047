"""One picture of many: a labelled grid, a row a kind of guidance, a column a prompt and seed."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
FONT_SIZE = 15
LINE = 20
BACKGROUND, INK = "white", "black"


def contact_sheet(columns: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Lay out pictures of one size under their columns' captions, each row under its title.

    Args:
        columns: a caption for each column; wrapped to the width of a picture.
        rows: title -> one picture a column.
    """
    font = ImageFont.load_default(FONT_SIZE)
    width, height = next(iter(rows.values()))[0].size
    characters = int(width / font.getlength("abcdefghij") * 10)
    captions = [textwrap.fill(column, characters) for column in columns]
    top = MARGIN + LINE * max(caption.count("\n") + 1 for caption in captions)
    row_height = LINE + height + MARGIN
    sheet = Image.new(
        "RGB", (MARGIN + len(columns) * (width + MARGIN), top + MARGIN + len(rows) * row_height), BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + number * (width + MARGIN) for number in range(len(columns))]
    for left, caption in zip(lefts, captions, strict=True):
        draw.multiline_text((left, MARGIN), caption, INK, font, spacing=LINE - FONT_SIZE)
    for number, (title, pictures) in enumerate(rows.items()):
        y = top + MARGIN + number * row_height
        draw.text((MARGIN, y - 2), title, INK, font)
        for left, picture in zip(lefts, pictures, strict=True):
            sheet.paste(picture, (left, y + LINE))
    return sheet
