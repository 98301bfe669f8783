"""Arrays that hold the items of all splits: which rows are a split's."""

import numpy as np


class SplitRows:
    """What has `splits`, a split's name to its rows (int64, in the split's order)."""

    splits: dict[str, np.ndarray]

    def rows(self, split: str) -> np.ndarray:
        """Rows of the split's items in the split's order, int64.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"expected a split of {', '.join(self.splits)}, found {split!r}")
        return self.splits[split]
