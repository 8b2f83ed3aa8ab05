"""The Engine API: paths, versions, errors. Each module of this package is one tag of the API description."""
