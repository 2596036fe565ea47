"""Books with adapters of random weights, put on a shelf without learning."""

import shutil

from helpers.adapters import BASE_ID
from seal_hf.shelf import LearnedPassage


def put(shelf, adapter, title, *passages, base_model_id=BASE_ID, base=None, pairs=()):
    """
    A book of these passages, `(topic, text)` each, that all have the adapter in the folder `adapter`.

    Returns:
        `Book`: the book.
    """
    with shelf.new_book() as new:
        for topic, text in passages:
            shutil.copytree(adapter, new.adapter_folder(topic))
            new.add(LearnedPassage(topic, text, "", pairs=tuple(pairs), loss=0.5, num_asked=4, num_right=3))
        return new.keep(title, base_model_id, base_model_id, base or {"base_dtype": "float32"})
