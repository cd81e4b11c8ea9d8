"""Scenes: a rendered world of objects with attributes, which needs no download.

Every image shows one to four objects, each with a colour, a material, a shape, a texture and a size, on
some ground in some light. Image i of a split is a pure function of (seed, split, i); see docs/scenes.md.
Look at it:

    python -m input_pipeline.scenes --contact_sheet scenes.png --rows 4 --columns 6 --size 128

In the order in which they build on each other:

vocabulary     the words, and the attribute schema made of them
options        the knobs
draws          random numbers that are the same everywhere, for ever
camera         the pinhole camera over the ground plane
records        factors, relations, captions and scenes as typed records
solids         ray intersections, normals and surface coordinates of the six shapes
layout         where objects stand, so that each can be seen
sampling       (options, split, index) -> Factors
grounds        the floors and backdrops
materials      textures and shading
rendering      Factors -> image and masks
captions       Factors -> relations, caption, hard negatives
labels         Factors -> the label vector
ahead          processes that render while a run compiles
source         the door: schema, open_split, Source
contact_sheet  scenes side by side, to look at
"""

from input_pipeline.scenes.captions import SENTENCES
from input_pipeline.scenes.options import Options
from input_pipeline.scenes.source import Source, open_split, schema
from input_pipeline.scenes.vocabulary import SCHEMA

__all__ = ["SCHEMA", "SENTENCES", "Options", "Source", "open_split", "schema"]
