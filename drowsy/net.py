"""Nothing but an answer to networks that were pickled when ``drowsy.net`` was a module.

Their pickles name this module first, and others that are gone after it.
"""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"drowsy.net.{name}: is of an earlier version of drowsy, as is a network that was pickled "
        "with it: convert the model again (schedules, frontiers, calibrations, stencils and stores "
        "are read as before); code finds DrowsyNet in drowsy"
    )
