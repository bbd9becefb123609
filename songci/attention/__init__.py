"""What the attention heads do: in numbers (stats), in pictures (plots), and as a page that needs no network (page).

attention.heatmaps is plots.heatmaps, and so on: a module is imported when one of its calls is asked for, so that the
numbers need neither matplotlib nor bertviz.
"""

from importlib import import_module

PLACES = {
    "stats": ("load", "load_existing", "read"),
    "plots": ("ablation", "heatmaps", "lens", "losses", "predictions", "statistics"),
    "page": ("head_view", "model_view"),
}
CALLS = {call: module for module, calls in PLACES.items() for call in calls}


def __getattr__(name: str):
    if name not in CALLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{CALLS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *CALLS]
