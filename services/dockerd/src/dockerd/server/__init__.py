"""HTTP over gunicorn, and what HTTP servers do not do: long streams without a thread each, and upgraded connections."""
