"""mmlib: image–text retrieval that can be reproduced, resumed and believed.

Rooms, in the order in which they may import each other:
`files, config <- metrics <- data <- model <- analysis <- training <- reporting <- pipeline <- cli`; `metrics`
needs `files` alone.
Importing this package does no work and loads no torch.
"""

import os

# Read by torch when it is loaded and at its first allocation.  Threads that wait for each other sleep: on a
# machine that others use too, waiting awake makes a step ten times as long.  Large tensors lie in huge
# pages: fresh memory for a batch of images then costs a third.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
