"""`wsca bench`: what is said about speed, measured on this machine.

turns         contenders take turns, medians and ratios
photographs   a data set of synthetic JPEGs of a given size
contenders    bare decoding, and the pipeline with so many threads
memory        what the pipeline holds, measured and bounded
input         `wsca bench input`
"""
