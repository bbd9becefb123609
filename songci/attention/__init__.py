"""What the attention heads do: in numbers (stats), in pictures (plots), and as a page that needs no network (page)."""

from songci.attention.page import head_view, model_view  # noqa: F401
from songci.attention.plots import ablation, heatmaps, lens, losses, predictions, statistics, tones  # noqa: F401
from songci.attention.stats import load, load_existing, read  # noqa: F401
