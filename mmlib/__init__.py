"""mmlib: image–text retrieval that can be reproduced, resumed and believed.

Rooms, in the order in which they may import each other:
`config, paths <- data <- model <- training <- reporting`; `metrics` imports none of them.
Importing this package does no work and loads no torch.
"""

__version__ = "0.1.0"
