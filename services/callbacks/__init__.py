"""Callbacks that come with the project, by the names under which `lowdimfa` offers them."""
