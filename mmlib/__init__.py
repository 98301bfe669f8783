"""mmlib: image–text retrieval that can be reproduced, resumed and believed.

Rooms, in the order in which they may import each other:
`config, paths <- data <- model <- training <- reporting`; `metrics` imports none of them.
Importing this package does no work and loads no torch.
"""

import os

# Large tensors on the host in huge pages, read by torch at its first allocation: fresh memory for a batch
# of images then costs a third.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
