"""Vector search over embedded datasets."""

from sensorium.search.index import Index
from sensorium.search.render import save_results
from sensorium.search.results import Hit, RowInfo, SearchResult

__all__ = ["Hit", "Index", "RowInfo", "SearchResult", "save_results"]
