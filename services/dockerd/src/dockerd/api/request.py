"""Reading a request as the real engine does: query values, filters, JSON bodies.

Go's JSON decoder takes field names in any letter case, so :func:`json_body` gives a mapping that does too.
"""
