"""The world behind Scenes: what can be in a picture, how it is drawn by lot, and how it is rendered.

vocabulary  the words, and the attribute schema made of them
options     the knobs
records     one scene's factors, relations and captions, as typed records
draws       random numbers that are the same everywhere, for ever
camera      the pinhole camera over the ground plane
layout      where objects stand, so that each can be seen
sampling    (options, split, index) -> Factors
solids      ray intersections, normals and surface coordinates of the six shapes
grounds     the floors and backdrops
materials   textures and shading
rendering   Factors -> image and masks
captions    Factors -> relations, caption, hard negatives
labels      Factors -> the label vector
"""
