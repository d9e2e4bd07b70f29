"""What a model does with a text, for quantising it well: the inputs of its matrices.

`windows` cuts a text into equal runs of tokens, `forward` takes them through the model layer by
layer with weights from `weights`, in memory that `arrays` finds, and tells an observer what every
matrix multiplies. `collect` makes an importance matrix of that, which `imatrix` writes and reads;
`calibration` makes hessians of it, with which `compensation` quantises (``convert --calibrate``).
"""
