"""A contact sheet: a labelled grid with a row per kind of guidance and a column per prompt and seed."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 12
FONT_SIZE = 15
LINE = 20
BACKGROUND, INK = "white", "black"


def contact_sheet(columns: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Lay out pictures of one width under their columns' captions, each row under its title.

    columns: a caption for each column, wrapped to the width of a picture. rows: title -> one picture per
    column, all of one height.
    """
    font = ImageFont.load_default(FONT_SIZE)
    width = next(iter(rows.values()))[0].width
    characters = int(width / font.getlength("abcdefghij") * 10)
    captions = [textwrap.fill(column, characters) for column in columns]
    top = MARGIN + LINE * max(caption.count("\n") + 1 for caption in captions)
    bottom = top + MARGIN + sum(LINE + pictures[0].height + MARGIN for pictures in rows.values())
    sheet = Image.new("RGB", (MARGIN + len(columns) * (width + MARGIN), bottom), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + number * (width + MARGIN) for number in range(len(columns))]
    for left, caption in zip(lefts, captions, strict=True):
        draw.multiline_text((left, MARGIN), caption, INK, font, spacing=LINE - FONT_SIZE)
    y = top + MARGIN
    for title, pictures in rows.items():
        draw.text((MARGIN, y - 2), title, INK, font)
        for left, picture in zip(lefts, pictures, strict=True):
            sheet.paste(picture, (left, y + LINE))
        y += LINE + pictures[0].height + MARGIN
    return sheet
