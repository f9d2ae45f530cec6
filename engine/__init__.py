"""OneFlow made to work: loading it, devices, native kernels, operators."""
