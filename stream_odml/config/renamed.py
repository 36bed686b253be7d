"""Keys of a configuration by their earlier names, accepted with a warning for one release."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from stream_odml.learn.settings import RENAMED as LEARNING
from stream_odml.learn.settings import RENAMED_METHODS

KEYS: Mapping[str, Mapping[str, str]] = {"learning": LEARNING}
"""Earlier name -> name, by section."""
VALUES: Mapping[str, Mapping[str, str]] = {"method": RENAMED_METHODS}
"""Earlier value -> value, by key."""

log = logging.getLogger(__name__)


def with_new_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data under today's names, with a warning for each earlier one.

    Where both names of a key are given, the earlier one stays and is then refused as an unknown key.
    """
    renamed = dict(data)
    for section, names in KEYS.items():
        if isinstance(keys := renamed.get(section), Mapping):
            renamed[section] = {_key(section, key, names, keys): value for key, value in keys.items()}
    for key, values in VALUES.items():
        if isinstance(value := renamed.get(key), str) and value in values:
            log.warning("%s: %s is now called %s; write the new name", key, value, values[value])
            renamed[key] = values[value]
    return renamed


def _key(section: str, key: str, names: Mapping[str, str], given: Mapping[str, Any]) -> str:
    new = names.get(key)
    if new is None or new in given:
        return key
    log.warning("%s.%s is now called %s.%s; write the new name", section, key, section, new)
    return new
