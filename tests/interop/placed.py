"""For tests: a state of torch's through a name table into our tree, and back."""

import numpy as np

from ldm_jax.core.trees import map_with_path, paths
from ldm_jax.interop.places import check, read, write


def there_and_back(places, shapes, state) -> dict:
    """Our tree of the structure of `shapes`, filled from a torch state. Strict; and written again the state is the same, bit for bit."""
    theirs = {name: np.asarray(leaf) for name, leaf in state.items()}
    check(places, {path: leaf.shape for path, leaf in paths(shapes)}, {name: leaf.shape for name, leaf in theirs.items()}, "theirs")
    ours = dict(read(places, theirs))
    back = dict(write(places, ours))
    assert back.keys() == theirs.keys()
    for name, leaf in back.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    return map_with_path(lambda path, _: ours[path], shapes)
