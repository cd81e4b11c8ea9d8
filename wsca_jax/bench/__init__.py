"""`wsca bench`: what is said about speed, measured on this machine.

turns            contenders take turns, medians and ratios
photographs      a data set of synthetic JPEGs of a given size
stream           training batches as a contender, once the pipeline is running
contenders       bare decoding, and the pipeline with so many threads
memory           what the pipeline holds, measured and bounded
input            `wsca bench input`

prepared         a compiled training step with a batch of noise
variants         a configuration with other modules
modules          what each module costs
loop             the loader and the training loop as contenders
against_torch    what PyTorch is to do beside it
torch_step       PyTorch as a contender, in a process of its own
torch_baseline   torch_resnet   torch_recipe    its model, augmentation and loss
figures, text    what was found
peaks            what devices can do at most
step             `wsca bench step`
"""
